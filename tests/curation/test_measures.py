"""Measures of a scored data set, against what the libraries say of one image or text at a time."""

import json
import shutil
from functools import partial
from io import BytesIO
from pathlib import Path

import imagehash
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from python_script.measure_pairs import DEFAULT_CONFIG, MeasureConfig, main
from src.config import load_config
from src.curation import measure_job
from src.curation.job import run_job
from src.curation.measure_job import measure_pairs
from src.curation.measures import LANGUAGES, identifier
from src.dataset.records import DataSpec
from src.dataset.scenes import make_scene
from src.errors import JobError
from src.model.clip import load_clip
from src.model.nano_clip import nano_clip
from tests.curation.score_tables import pair, write_pictures, write_scores

ALL = ["clip_score", "image_entropy", "language", "phash", "embedding_group"]


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def no_clip():
    raise AssertionError("no measure asked for it")


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory) -> Path:
    """A small CLIP of random weights, saved by transformers."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    model, processor = nano_clip(["a lake beside a forest .", "two white planes"], vocab_size=300, image_side=32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures() -> dict[str, Image.Image]:
    """Six different scenes."""
    kinds = ["airport", "harbour", "farmland", "desert", "forest", "lake"]
    return {kind: make_scene(seed).image for seed, kind in enumerate(kinds)}


@pytest.fixture(scope="module")
def job(tmp_path_factory, pictures, tiny_scorer) -> Path:
    """A finished scoring job: two captions a record, copies of the first two scenes, a broken image."""
    folder = tmp_path_factory.mktemp("job")
    one, other, *rest = pictures.values()
    images = [
        *(encoded(image) for image in (one, other, *rest)),
        encoded(one),
        encoded(one, "JPEG", quality=60),
        encoded(other.resize((150, 150))),
        encoded(one)[:900],
    ]
    texts = [[f"a made scene with number {n} .", "a lake ." if n % 2 else "12 ."] for n in range(len(images))]
    rows = [{"image": {"bytes": image, "path": None}, "captions": t} for image, t in zip(images, texts, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    spec = DataSpec(str(folder / "data.parquet"), text_column="captions")
    summary = run_job(spec, tiny_scorer, "assets/nano/scorer", folder / "scores_dir")
    assert (summary.pairs, summary.errors) == (20, {"truncated_image": 2})
    return folder / "scores_dir"


@pytest.fixture(scope="module")
def measured(job, clip_path) -> list[dict]:
    load = partial(load_clip, clip_path, "cpu")
    summary = measure_pairs(job, job / "measures.parquet", ALL, load, similarity=0.99, batch_size=4, workers=2)
    assert (summary.records, summary.pairs, summary.images) == (10, 20, 9)
    assert summary.unreadable == {"truncated_image": 1}
    assert summary.groups["phash_group"] == (2, 5, 3)
    assert summary.languages == {"en": 15, None: 5}
    return pq.read_table(summary.path).to_pylist()


def test_every_pair_of_the_table_has_a_row(job, measured):
    table = pq.read_table(job / "scores")
    assert [row["id"] for row in measured] == table["id"].to_pylist()
    assert list(measured[0]) == [
        *("id", "clip_score", "image_entropy", "language", "language_probability", "phash"),
        *("phash_group", "embedding_group"),
    ]
    assert not list(job.glob(".measures*"))


def test_values_are_those_of_the_libraries(measured, pictures, clip_path):
    clip = load_clip(clip_path, "cpu")
    for n, image in enumerate(pictures.values()):
        feature = clip.image_features(clip.preprocess(image)[None])[0]
        for k, text in enumerate([f"a made scene with number {n} .", "a lake ." if n % 2 else "12 ."]):
            row = measured[2 * n + k]
            assert row["clip_score"] == pytest.approx(float(feature @ clip.text_features([text])[0]), abs=1e-5)
            assert row["image_entropy"] == image.convert("L").entropy()
            assert row["phash"] == str(imagehash.phash(image))
            assert row["language"] == (None if text == "12 ." else "en")
            assert (row["language_probability"] is None) == (text == "12 .")
    assert len({row["clip_score"] for row in measured[:12]}) == 12


def test_copies_are_found_and_other_images_are_not(measured):
    of_records = [row["phash_group"] for row in measured[::2]]
    assert of_records == [0, 1, 2, 3, 4, 5, 0, 0, 1, None]
    assert of_records == [row["phash_group"] for row in measured[1::2]]
    assert [row["embedding_group"] for row in measured[::2]][6] == 0
    assert measured[18]["embedding_group"] is None


def test_broken_image_leaves_what_its_text_says(measured):
    assert measured[19] | {"language_probability": None} == {
        **dict.fromkeys(measured[19]),
        "id": "data.parquet:00000009#1",
        "language": "en",
    }


def test_only_what_is_asked_for_is_made(job, tmp_path):
    summary = measure_pairs(job, tmp_path / "m.parquet", ["language"], no_clip, facts={"measures": ["language"]})
    table = pq.read_table(summary.path)
    assert table.column_names == ["id", "language", "language_probability"]
    assert json.loads(table.schema.metadata[b"measures"]) == {"measures": ["language"]}
    assert str(summary) == "20 pairs of 10 records\nlanguages  15 en, 5 without one"


def test_run_that_is_cut_short_leaves_no_file(job, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    target, torn = tmp_path / "m.parquet", tmp_path / ".m.parquet.partial"
    with monkeypatch.context() as patched:
        patched.setattr(measure_job, "groups_of_hashes", interrupt)
        with pytest.raises(KeyboardInterrupt):
            measure_pairs(job, target, ["phash"], no_clip)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", torn.name]
    shutil.rmtree(torn)
    torn.mkdir()
    (torn / "values.parquet").write_bytes(b"PAR1")  # of another version of the program
    measure_pairs(job, target, ["phash"], no_clip)
    assert pq.read_table(target).num_rows == 20
    assert not torn.exists()


def test_conversations_without_an_image_are_in_no_group(tmp_path, tiny_scorer, clip_path, pictures):
    def talk(text: str, **more) -> dict:
        question = "<image>What?" if more else "What?"
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": text}], **more}

    next(iter(pictures.values())).save(tmp_path / "a.png")
    rows = [talk("a lake beside a forest ."), talk("ein See neben dem Wald .", images=["a.png"]), talk("a lake .")]
    (tmp_path / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    job = tmp_path / "job"
    run_job(DataSpec(str(tmp_path / "data.json")), tiny_scorer, "assets/nano/scorer", job)
    words = [f"scores_dir={job}", f"measures={json.dumps(ALL)}", f"clip.path={clip_path}", "clip.device=cpu"]
    main(load_config(MeasureConfig, DEFAULT_CONFIG, words))
    found = pq.read_table(job / "measures.parquet").to_pylist()
    assert [row["language"] for row in found] == ["en", "de", "en"]
    for name in ("clip_score", "image_entropy", "phash", "phash_group", "embedding_group"):
        assert [row[name] is None for row in found] == [True, False, True], name
    assert found[1]["phash_group"] == found[1]["embedding_group"] == 1


def test_jobs_that_cannot_be_measured_are_refused(job, tmp_path):
    measure = partial(measure_pairs, output=tmp_path / "m.parquet", load=no_clip)
    with pytest.raises(JobError, match="unknown measure 'blur'; known: clip_score, image_entropy, language, phash"):
        measure(job, measures=["phash", "blur"])
    with pytest.raises(JobError, match="measures is empty"):
        measure(job, measures=[])
    with pytest.raises(JobError, match=r"phash\.distance must be 0 to 16"):
        measure(job, measures=["phash"], distance=17)
    with pytest.raises(JobError, match=r"embedding\.similarity must be above 0 and below 1, not 1"):
        measure(job, measures=["embedding_group"], similarity=1.0)
    with pytest.raises(JobError, match="py3langid does not know xx; it knows"):
        measure(job, measures=["language"], languages=["en", "xx"])
    changed = write_scores(tmp_path / "changed", [pair(0, 1.0)], write_pictures(tmp_path / "data", ["a lake ."]))
    with (tmp_path / "data" / "data.csv").open("a", encoding="utf-8") as file:
        file.write("1.png,a new caption,place 1\n")
    with pytest.raises(JobError, match=r"has changed since it was scored: input.bytes \(was \d+, now"):
        measure(changed, measures=["phash"])
    unfinished = shutil.copytree(job, tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    with pytest.raises(JobError, match=r"has no summary.json: its scoring job has not finished"):
        measure(unfinished, measures=["phash"])
    assert not (tmp_path / "m.parquet").exists()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("many buildings and green trees are around a playground .", "en"),
        ("a lake .", "en"),
        ("Viele Gebäude und Bäume stehen um einen Sportplatz .", "de"),
        ("Plusieurs bâtiments entourent un terrain de sport .", "fr"),
        ("Muchos edificios y árboles verdes rodean el estadio .", "es"),
        ("许多建筑物和绿树围绕着一个操场。", "zh"),
        ("川の両側に多くの家が並んでいる。", "ja"),
        ("Вокруг стадиона много зданий и деревьев .", "ru"),
        ("1 2 3 .", None),
        ("", None),
    ],
)
def test_languages_of_short_captions(text, code):
    found = identifier(LANGUAGES)(text)
    assert (found and found[0]) == code
    assert found is None or 0.2 < found[1] <= 1


def test_a_single_candidate_takes_all_that_has_letters():
    assert identifier(("en",))("ein See .") == ("en", pytest.approx(1))
    assert identifier(("en",))("12 .") is None


def test_features_that_are_not_finite_give_null(job, tmp_path, clip_path):
    def load():
        clip = load_clip(clip_path, "cpu")
        whole = clip.image_features
        clip.image_features = lambda pixels: whole(pixels).index_fill(0, torch.tensor([1]), float("nan"))
        return clip

    made = ["clip_score", "phash", "embedding_group"]
    summary = measure_pairs(job, tmp_path / "m.parquet", made, load, batch_size=16)
    assert summary.not_finite == 1
    assert "1 not_finite" in str(summary)
    found = pq.read_table(summary.path).to_pylist()
    assert [row["clip_score"] is None for row in found] == [n in (2, 3, 18, 19) for n in range(20)]
    assert [row["embedding_group"] is None for row in found] == [n in (2, 3, 18, 19) for n in range(20)]
    assert [row["phash_group"] for row in found[::2]] == [0, 1, 2, 3, 4, 5, 0, 0, 1, None]


def test_only_earlier_measures_are_replaced(job, tmp_path):
    data = job.parent / "data.parquet"
    before = data.read_bytes()
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["mine"]}), other)
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("mine")
    for output, message in (
        (tmp_path, "is a folder"),
        (data, "would replace the data"),
        (other, "is no earlier file of measures"),
        (thesis, "is no earlier file of measures"),
    ):
        with pytest.raises(JobError, match=message):
            measure_pairs(job, output, ["phash"], no_clip)
    assert (data.read_bytes(), thesis.read_text()) == (before, "mine")
    for _ in range(2):
        measure_pairs(job, tmp_path / "m.parquet", ["language"], no_clip)
    stored = json.loads(pq.read_schema(tmp_path / "m.parquet").metadata[b"input"])
    assert stored == json.loads((job / "manifest.json").read_text())["input"]
