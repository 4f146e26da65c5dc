"""Recall at k against fixtures, a slow twin with the whole matrix, and by hand; the program on tables of images."""

import csv
import errno
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from python_script.evaluation import eval_retrieval
from src.dataset.records import DataSpec
from src.dataset.scenes import make_scene, png_bytes
from src.errors import JobError
from src.evaluation.features import FeatureStore, exact_unit, image_state
from src.evaluation.retrieval import NEVER, places, recalls
from src.evaluation.retrieval_set import data_name, evaluate_retrieval

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "metrics" / "retrieval.json").read_text())


def slow_places(images, texts, pairs) -> tuple[list[int], list[int]]:
    """Sort the whole matrix, and look for the first right answer in every row and column."""
    matrix = images.double().numpy() @ texts.double().numpy().T
    own = {(int(i), int(t)) for i, t in pairs}

    def first(scores, is_right) -> int:
        order = np.argsort(-scores, kind="stable")
        return next((place for place, number in enumerate(order) if is_right(int(number))), NEVER)

    return (
        [first(matrix[i], lambda t, i=i: (i, t) in own) for i in range(len(images))],
        [first(matrix[:, t], lambda i, t=t: (i, t) in own) for t in range(len(texts))],
    )


@pytest.mark.parametrize("problem", FIXTURE["problems"], ids=lambda problem: problem["name"])
@pytest.mark.parametrize("block", [(3, 4), (1024, 4096)])
def test_recalls_are_those_of_the_fixtures(problem, block):
    images = exact_unit(torch.tensor(problem["image_embeddings"], dtype=torch.float64))
    texts = exact_unit(torch.tensor(problem["caption_embeddings"], dtype=torch.float64))
    pairs = np.array(problem["pairs"])
    found = recalls(*places(images, texts, pairs, block), pairs)
    assert {name: metric["value"] for name, metric in found.items()} == pytest.approx(problem["correct"], abs=1e-9)
    assert all(metric["low"] <= metric["value"] <= metric["high"] for metric in found.values())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_blocks_give_the_places_of_the_whole_matrix(data):
    """Few small integers make ties common; some images and captions belong to nothing."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    n, m, dim = (int(data.draw(st.integers(1, top))) for top in (12, 25, 4))
    draw = rng.normal if data.draw(st.booleans()) else lambda size: rng.integers(-1, 2, size).astype(float)
    images, texts = (exact_unit(torch.from_numpy(draw(size=(k, dim)))) for k in (n, m))
    pairs = np.unique(np.stack([rng.integers(n, size=m), rng.integers(m, size=m)], axis=1), axis=0)
    block = (data.draw(st.integers(1, 13)), data.draw(st.integers(1, 26)))
    found = places(images, texts, pairs, block)
    assert [part.tolist() for part in found] == list(slow_places(images, texts, pairs))


def test_cosines_do_not_depend_on_blocks_or_order():
    """Equal vectors tie to the last bit wherever they stand; in float32 the same products differ."""
    rng = torch.Generator().manual_seed(0)
    one = torch.randn(1, 768, generator=rng)
    texts = exact_unit(torch.cat([one] * 301))
    images = exact_unit(torch.randn(33, 768, generator=rng))
    for first in (images, images[:1]):
        for shuffle in (torch.arange(768), torch.randperm(768, generator=rng)):
            cosines = first[:, shuffle].double() @ texts[:, shuffle].double().T
            assert (cosines == cosines[:, :1]).all()
            assert cosines[0, 0] == (images[0].double() * texts[0].double()).sum()


def test_recall_by_hand():
    """CLIP_benchmark's definition: an image or a caption is a hit if any of its own is among the first k.

    Unit vectors in a plane, by angle: images at 0, 90 and 180 degrees; captions at 10 and 80 (of the first image),
    100.5 (of the second), 130 and 170 (of the third). The nearest images of the captions are the first, the second,
    the second, the second (40 degrees away, its own 50) and the third: 3 of 5 right, and all within two. The nearest
    captions of the images are those at 10, 80 (10 degrees away, its own 10.5) and 170: 2 of 3, and all within two.
    """

    def at(*degrees):
        angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
        return exact_unit(torch.stack([angles.cos(), angles.sin()], dim=1))

    pairs = np.array([[0, 0], [0, 1], [1, 2], [2, 3], [2, 4]])
    found = recalls(*places(at(0, 90, 180), at(10, 80, 100.5, 130, 170), pairs), pairs, (1, 2))
    values = {name: metric["value"] for name, metric in found.items()}
    expected = {"image_to_text_R@1": 2 / 3, "image_to_text_R@2": 1, "text_to_image_R@1": 0.6, "text_to_image_R@2": 1}
    assert values == pytest.approx({**expected, "mean_recall": (2 / 3 + 1 + 0.6 + 1) / 4})
    with pytest.raises(JobError, match="at least 1"):
        recalls(np.zeros(1), np.zeros(1), pairs[:1], (0,))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(12):
        (folder / f"{seed}.png").write_bytes(png_bytes(make_scene(seed, size=56).image))
    return folder


def write_table(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("filepath", "title"), *rows])
    return path


ROWS = [(f"{seed}.png", f"{word} scene {seed}") for seed in range(12) for word in ("a quiet", "one more")]


def test_images_and_captions_are_told_apart_whatever_the_format(clip, pictures, tmp_path):
    """A CSV with a row per caption, and a Parquet with images inside and lists of captions, hold the same pairs."""
    table = write_table(tmp_path / "a.csv", [*ROWS, ("./3.png", "a quiet scene 3"), ("4.png", "a quiet scene 3")])
    spec = DataSpec(str(table), str(pictures), "filepath")
    result = evaluate_retrieval(FeatureStore(clip, progress=False), spec)
    assert {key: result.counts[key] for key in ("images", "captions", "pairs", "records", "ok")} == {
        "images": 12, "captions": 24, "pairs": 25, "records": 26, "ok": 26}  # fmt: skip
    images = [{"bytes": (pictures / f"{seed}.png").read_bytes(), "path": None} for seed in range(12)]
    captions = [[text for name, text in ROWS if name == f"{seed}.png"] for seed in range(12)]
    captions[4].append("a quiet scene 3")
    pq.write_table(pa.table({"image": images, "captions": captions}), tmp_path / "b.parquet")
    inside = DataSpec(str(tmp_path / "b.parquet"), None, "image", "captions")
    again = evaluate_retrieval(FeatureStore(clip, batch_size=5, progress=False), inside)
    assert again.counts["pairs"] == 25
    for name, metric in result.metrics.items():
        assert again.metrics[name]["value"] == pytest.approx(metric["value"]), name


def test_what_cannot_be_used_misses_and_is_counted(clip, pictures, tmp_path):
    rows = [*ROWS, ("none.png", "nothing to see"), ("none.png", "nothing again"), ("5.png", ""), ("", "of no image")]
    spec = DataSpec(str(write_table(tmp_path / "bad.csv", rows)), str(pictures), "filepath")
    result = evaluate_retrieval(FeatureStore(clip, progress=False), spec, (1000,))
    assert result.counts == {
        "records": 28, "ok": 24, "errors": {"missing_image": 3, "empty_text": 1}, "images": 13, "unusable_images": 1,
        "captions": 27, "blank_captions": 1, "pairs": 26}  # fmt: skip
    assert [entry["row"] for entry in result.details["unusable"]] == [24, 25, 26, 27]
    assert result.metrics["image_to_text_R@1000"]["value"] == pytest.approx(12 / 13)
    assert result.metrics["text_to_image_R@1000"]["value"] == pytest.approx(24 / 27)
    lost = write_table(tmp_path / "lost.csv", [("none.png", "nothing")])
    with pytest.raises(JobError, match="none of 1 images"):
        evaluate_retrieval(FeatureStore(clip, progress=False), DataSpec(str(lost), str(pictures), "filepath"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("RSICD/test.csv", "test"), ("RSICD", "RSICD"), ("RSICD/*.tar", "RSICD"), ("RSICD/{train,val}.csv", "RSICD"),
        ("RSICD/train-*.parquet", "train"), ("RSICD/shard-{000..012}.tar", "shard"), ("RSICD/**/[0-9]*.tar", "RSICD"),
        ("RSICD/part-?-of-3.csv", "part-of-3"), ("v1.2", "v1.2"),
    ],
)  # fmt: skip
def test_patterns_have_sensible_names(path, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v1.2").mkdir()
    assert data_name(path) == name


def test_features_with_errors_that_may_pass_are_not_kept(clip, pictures, tmp_path, monkeypatch, caplog):
    paths = sorted(pictures.iterdir())[:3]
    (tmp_path / "broken.png").write_bytes(b"no image")
    paths += [tmp_path / "broken.png", tmp_path / "none.png"]
    states = [image_state(path) for path in paths]
    store = FeatureStore(clip, cache=tmp_path / "cache", progress=False)
    opened = Path.open

    def fail(path: Path, *args, **options):
        if path == paths[1].resolve():
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        assert list(store.images(states, lambda: paths).errors) == [1, 3, 4]
    assert "1 images may be readable another time" in caplog.text
    found = store.images(states, lambda: paths)
    assert list(found.errors) == [3, 4]
    assert torch.equal(store.images(states, list).vectors, found.vectors)  # kept: no image is asked for
    with pytest.raises(JobError, match="5 images were listed, but 4 came"):
        FeatureStore(clip, progress=False).images(states, lambda: paths[:4])


def test_the_program_refuses_to_replace_other_data(tiny, pictures, tmp_path, capsys):
    for folder in ("RSICD", "RSITMD"):
        (tmp_path / folder).mkdir()
        table = write_table(tmp_path / folder / "test.csv", ROWS)
    flags = ["--model_path", str(tiny), "--data_root", str(pictures), "--output", str(tmp_path / "out"), "--cache", ""]
    eval_retrieval.main([*flags, "--target_root", str(tmp_path / "RSICD" / "test.csv")])
    with pytest.raises(SystemExit) as stop:
        eval_retrieval.main([*flags, "--target_root", str(table)])
    assert stop.value.code == 2
    assert "is of other data" in capsys.readouterr().err
    eval_retrieval.main([*flags, "--target_root", str(table), "--name", "rsitmd"])
    assert len(list((tmp_path / "out").glob("*.json"))) == 2


def test_the_program_takes_several_k_and_keeps_features(tiny, pictures, tmp_path, capsys, monkeypatch):
    table = write_table(tmp_path / "captions.csv", [*ROWS, ("none.png", "lost")])
    flags = ["--model_path", str(tiny), "--target_root", str(table), "--data_root", f"{pictures}/.", "--recall_k", "10",
             "2", "--output_dir", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]  # fmt: skip
    eval_retrieval.main(flags)
    (path,) = (tmp_path / "out").glob("*.json")
    first = json.loads(path.read_text())
    assert list(first["metrics"]) == ["image_to_text_R@2", "image_to_text_R@10", "text_to_image_R@2",
                                      "text_to_image_R@10", "mean_recall"]  # fmt: skip
    assert first["counts"]["errors"] == {"missing_image": 1}
    assert "24 ok + 1 errors = 25 records, 1 missing_image" in capsys.readouterr().out

    def unused(*_):
        raise AssertionError("the features are kept")

    monkeypatch.setattr("src.model.clip.TransformersClip._encode_images", unused)
    monkeypatch.setattr("src.model.clip.TransformersClip._encode_texts", unused)
    eval_retrieval.main(flags)
    assert json.loads(path.read_text())["metrics"] == first["metrics"]
    damaged = next((tmp_path / "cache").glob("*/text-*"))
    damaged.write_bytes(b"cut")
    with pytest.raises(AssertionError, match="kept"):
        eval_retrieval.main(flags)


def test_the_program_names_what_is_wrong(tiny, tmp_path, capsys):
    table = write_table(tmp_path / "captions.csv", [("a.png", "b")])
    for flags, said in (
        (["--target_root", str(tmp_path / "none.csv")], "no such data file"),
        (["--target_root", str(table), "--target_column", "caption"], "no column 'caption'"),
        (["--target_root", str(table), "--data_root", str(tmp_path / "none")], "no such image root"),
        (["--target_root", str(table), "--data_root", str(tmp_path), "--recall_k", "0"], "at least 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            eval_retrieval.main(["--model_path", str(tiny), "--cache", "", *flags])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
