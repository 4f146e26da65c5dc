"""Which pairs CLIP trains on, and the batches they make."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from src.curation.rules import Rule
from src.curation.select import select_subset
from src.dataset.records import DataSpec, input_fingerprint
from src.errors import JobError
from src.model.nano_clip import nano_clip
from src.training.clip_config import Data
from src.training.clip_data import ClipCollator, load_pairs
from tests.curation.score_tables import pair, write_scores


def write_csv(folder: Path, rows: list[str]) -> Path:
    path = folder / "pairs.csv"
    path.write_text("\n".join(["filename,title,clip_score", *rows]) + "\n")
    return path


def data(pictures: Path, path: Path | None, **keys) -> Data:
    return Data(csv_path=str(path) if path else None, cache_dir=str(pictures / "cache"), num_workers=2, **keys)


def texts(pairs) -> list[str]:
    return [pairs[i]["text"] for i in range(len(pairs))]


def test_records_that_cannot_be_used_are_counted_by_kind(pictures):
    (pictures / "torn.png").write_bytes((pictures / "a.png").read_bytes()[:200])
    path = write_csv(
        pictures, ["a.png,a lake,1", "gone.png,a pier,1", "b.png,,1", "torn.png,a dam,1", "c.png,fields,1"]
    )
    pairs = load_pairs(data(pictures, path), 0)
    assert texts(pairs) == ["a lake", "fields"]
    assert "5 records = 2 usable with 2 captions + 3 errors" in pairs.summary
    assert "empty_text 1, missing_image 1" in pairs.summary
    log = next(pictures.glob("cache/*/errors.jsonl")).read_text().splitlines()
    assert {json.loads(line)["kind"] for line in log} >= {"missing_image", "empty_text"}
    assert any("torn.png" in line for line in log)


def test_the_highest_of_a_column_ties_by_row_and_no_number_never(pictures):
    path = write_csv(
        pictures,
        ["a.png,one,0.5", "b.png,two,nan", "c.png,three,0.9", "d.png,four,0.5", "e.png,five,", "f.png,six,0.1"],
    )
    pairs = load_pairs(data(pictures, path, filter_record=True, save_top_percent=0.5), 0)
    assert texts(pairs) == ["one", "three"]
    assert pairs.summary.startswith("2 rows of 6 by clip_score, 2 without a number")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"filter_record": True, "save_top_percent": 30}, "fraction.*did you mean 0.3"),
        ({"filter_record": True, "save_top_percent": 0.0}, "fraction"),
        ({"filter_record": True, "filter_column": "score"}, "no column score; it has filename, title, clip_score"),
        ({"captions": "all"}, "use one of each, drawn"),
        ({"subset": "nowhere.parquet"}, "nowhere.parquet"),
        ({"target_column": "caption"}, "caption"),
    ],
)
def test_wrong_keys_are_refused_by_name(pictures, keys, message):
    path = write_csv(pictures, ["a.png,one,0.5"])
    with pytest.raises(JobError, match=message):
        load_pairs(data(pictures, path, **keys), 0)


def test_no_data_is_refused(pictures):
    with pytest.raises(JobError, match="csv_path"):
        load_pairs(data(pictures, None), 0)
    with pytest.raises(JobError, match=r"nothing to train on.*missing_image 1"):
        load_pairs(data(pictures, write_csv(pictures, ["gone.png,one,0.5"])), 0)


@pytest.fixture
def lists(pictures) -> Path:
    """Four records with embedded images and three captions each."""
    images = [{"bytes": (pictures / f"{name}.png").read_bytes(), "path": None} for name in "abcd"]
    rows = [
        {"image": image, "captions": [f"{name}{k}" for k in "xyz"]} for name, image in zip("abcd", images, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), pictures / "lists.parquet")
    return pictures / "lists.parquet"


def test_a_selection_names_its_data_and_its_captions(pictures, lists):
    rows = [pair(row, row + k / 10, text_index=k, id=f"{row}#{k}") for row in range(4) for k in range(3)]
    spec = {"path": str(lists), "image_column": "image", "text_column": "captions"}
    write_scores(pictures / "job", rows, data=spec)
    manifest = json.loads((pictures / "job" / "manifest.json").read_text())
    manifest["input"] = input_fingerprint(DataSpec(**spec))
    (pictures / "job" / "manifest.json").write_text(json.dumps(manifest))
    select_subset(pictures / "job", pictures / "job", Rule(fraction=0.4))
    pairs = load_pairs(data(pictures, None, subset=str(pictures / "job")), 0)
    assert texts(pairs) == ["cz", "dx", "dy", "dz"]
    assert "4 pairs of" in pairs.summary
    manifest["input"]["bytes"] += 1
    (pictures / "job" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(JobError, match="has changed since it was scored"):
        load_pairs(data(pictures, None, subset=str(pictures / "job")), 0)


def test_each_caption_is_a_pair_or_one_is_drawn_anew_each_epoch(pictures, lists):
    keys = {"image_column": "image", "target_column": "captions"}
    assert len(load_pairs(data(pictures, lists, **keys), 0)) == 12
    pairs = load_pairs(data(pictures, lists, captions="drawn", **keys), 0)
    assert len(pairs) == 4
    seen = []
    for epoch in range(20):
        pairs.set_epoch(epoch)
        seen.append(texts(pairs))
        assert [text[0] for text in seen[-1]] == list("abcd")
    assert {text for epoch in seen for text in epoch} == {f"{name}{k}" for name in "abcd" for k in "xyz"}
    pairs.set_epoch(3)
    assert texts(pairs) == seen[3]


def test_a_shared_image_is_decoded_once_and_equal_things_have_equal_numbers(pictures, monkeypatch):
    path = write_csv(pictures, ["a.png,one,0", "b.png,two,0", "a.png,three,0", "c.png,two,0"])
    pairs = load_pairs(data(pictures, path), 0)
    opened = []
    from src.training import clip_data

    real = clip_data.open_image
    monkeypatch.setattr(clip_data, "open_image", lambda *args: opened.append(args) or real(*args))
    collate = ClipCollator(nano_clip(["one two three"], 260, 32)[1], 48, pairs.root)
    batch = collate([pairs[i] for i in range(4)])
    assert len(opened) == 3
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    assert batch["image_index"].tolist() == [0, 1, 0, 2]
    images, captions = batch["groups"].T.tolist()
    assert [images[0] == images[2], images[0] == images[1]] == [True, False]
    assert [captions[1] == captions[3], captions[0] == captions[2]] == [True, False]


def test_a_view_follows_seed_and_epoch(pictures):
    path = write_csv(pictures, ["a.png,one,0"])
    pairs = load_pairs(data(pictures, path), 0)
    collate = ClipCollator(nano_clip(["one"], 260, 32)[1], 48, pairs.root, augment=True)
    views = []
    for epoch in (0, 0, 1):
        pairs.set_epoch(epoch)
        views.append(collate([pairs[0]])["pixel_values"])
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_images_that_come_later_are_found(pictures):
    path = write_csv(pictures, ["a.png,one,0", "late.png,two,0"])
    assert texts(load_pairs(data(pictures, path), 0)) == ["one"]
    (pictures / "late.png").write_bytes((pictures / "b.png").read_bytes())
    assert texts(load_pairs(data(pictures, path), 0)) == ["one", "two"]


def test_long_texts_are_cut_to_the_context(pictures):
    pairs = load_pairs(data(pictures, write_csv(pictures, [f"a.png,{'one ' * 99},0"])), 0)
    assert ClipCollator(nano_clip(["one"], 260, 32)[1], 16, pairs.root)([pairs[0]])["input_ids"].shape == (1, 16)


def test_a_path_outside_the_root_is_an_error_of_its_record(pictures):
    inside = pictures / "inside"
    inside.mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(inside / "z.png")
    path = write_csv(pictures, ["../a.png,one,0", "z.png,two,0"])
    pairs = load_pairs(data(pictures, path, image_path=str(inside)), 0)
    assert texts(pairs) == ["two"]
    assert "unsafe_path 1" in pairs.summary
