"""Folders of the datasets library are read and written as they are: memory-mapped, images encoded."""

import json
import tracemalloc

import datasets
import numpy as np
import pyarrow as pa
import pytest

from src.dataset import arrow_writers, saved_datasets
from src.dataset.images import open_image
from src.dataset.records import (
    DataSpec,
    count_records,
    input_fingerprint,
    pick_records,
    read_records,
    resolve_root,
    write_subset,
)
from src.errors import JobError


@pytest.fixture
def made() -> datasets.Dataset:
    features = datasets.Features({
        "image": datasets.Image(),
        "captions": datasets.List(datasets.Value("string")),
        "title": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["p", "q"]),
    })  # fmt: skip
    columns = {
        "image": [np.full((4, 5, 3), k, np.uint8) for k in range(9)],
        "captions": [[f"a {k}", f"b {k}"] for k in range(9)],
        "title": [f"title {k}" for k in range(9)],
        "label": [k % 2 for k in range(9)],
    }
    return datasets.Dataset.from_dict(columns, features)


def test_rows_images_and_ranges(tmp_path, made):
    folder = tmp_path / "saved"
    made.save_to_disk(folder, num_shards=3)
    spec = DataSpec(str(folder), source_column="label")
    records = list(read_records(spec))
    assert [record.id for record in records] == [f"saved:{k:08d}" for k in range(9)]
    assert [record.texts for record in records] == [(f"title {k}",) for k in range(9)]
    assert [record.source for record in records] == [str(k % 2) for k in range(9)]
    assert all(isinstance(record.images[0]["bytes"], bytes) for record in records)
    assert np.array_equal(np.asarray(open_image(records[7].images[0])), np.full((4, 5, 3), 7, np.uint8))
    assert count_records(spec) == 9
    assert resolve_root(spec) == folder
    for start in range(11):
        assert list(read_records(spec, start, start + 4)) == records[start : start + 4]
    assert list(pick_records(spec, [8, 2])) == [records[2], records[8]]
    several = list(read_records(DataSpec(str(folder), text_column="captions")))
    assert several[3].texts == ("a 3", "b 3")
    fingerprint = input_fingerprint(spec)
    assert sorted(fingerprint["files"]) == sorted(path.name for path in folder.iterdir())
    (folder / "cache-1234.arrow").write_bytes(b"x")
    assert input_fingerprint(spec) == fingerprint


def test_a_chosen_order_is_kept(tmp_path, made):
    made.select([5, 1]).save_to_disk(tmp_path / "saved")
    assert [r.texts[0] for r in read_records(DataSpec(str(tmp_path / "saved")))] == ["title 5", "title 1"]


def test_splits_must_be_chosen(tmp_path, made):
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(tmp_path / "dict")
    with pytest.raises(JobError, match=r"several splits; choose one of them by its path: .*/dict/test, .*/dict/train"):
        read_records(DataSpec(str(tmp_path / "dict")))
    assert count_records(DataSpec(str(tmp_path / "dict" / "test"))) == 1


@pytest.mark.parametrize("shard_bytes", [1, 10**9])
def test_kept_rows_load_with_all_features(tmp_path, made, shard_bytes, monkeypatch):
    monkeypatch.setattr(saved_datasets, "SHARD_BYTES", shard_bytes)
    monkeypatch.setattr(arrow_writers, "_GROUP_ROWS", 1)
    monkeypatch.setattr("src.dataset.rows.BATCH_BYTES", 300)
    made.save_to_disk(tmp_path / "saved")
    for text_column, scores in (("title", [(0, 0.5)]), ("captions", [(1, 0.5)])):
        spec = DataSpec(str(tmp_path / "saved"), text_column=text_column)
        for _ in range(2):
            target = write_subset(spec, [(2, scores), (7, scores)], tmp_path / "out")
        assert target == tmp_path / "out" / "kept"
        assert len(list(target.glob("*.arrow"))) == (2 if shard_bytes == 1 else 1)
        kept = datasets.load_from_disk(str(target))
        assert kept.features["label"].names == ["p", "q"]
        assert np.array_equal(kept[1]["image"], np.full((4, 5, 3), 7, np.uint8))
        several = text_column == "captions"
        assert kept["captions"][0] == (["b 2"] if several else ["a 2", "b 2"])
        assert list(kept["score"]) == ([[0.5], [0.5]] if several else [0.5, 0.5])
        assert kept.select([1])[0]["title"] == "title 7"
    again = write_subset(DataSpec(str(target)), [(1, [(0, 2.0)])], tmp_path / "again")
    assert datasets.load_from_disk(str(again))[0]["score_rs"] == 2.0
    empty = write_subset(DataSpec(str(target)), [], tmp_path / "empty")
    assert len(datasets.load_from_disk(str(empty))) == 0
    with pytest.raises(JobError, match="would replace the input"):
        write_subset(DataSpec(str(target)), [], tmp_path / "out")


def test_damaged_folders_are_refused(tmp_path, made):
    folder = tmp_path / "saved"
    made.save_to_disk(folder)
    state = (folder / "state.json").read_text()
    (folder / "state.json").write_text(state.replace("data-00000", "data-00009"))
    with pytest.raises(JobError, match="saved"):
        read_records(DataSpec(str(folder)))
    (folder / "state.json").write_text("{")
    with pytest.raises(JobError, match="saved"):
        input_fingerprint(DataSpec(str(folder)))
    (folder / "state.json").write_text(json.dumps(json.loads(state)))
    next(folder.glob("*.arrow")).write_bytes(b"x" * 1000)
    with pytest.raises(JobError, match="cannot be loaded"):
        read_records(DataSpec(str(folder)))


def test_memory_does_not_grow_with_the_data(tmp_path):
    columns = {"filename": [f"{k}.png" for k in range(10_000)], "title": [f"{k} " + "x" * 3000 for k in range(10_000)]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    del columns
    before, peak = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    for record in read_records(DataSpec(str(tmp_path / "saved"))):
        assert len(record.texts[0]) > 3000
        peak = max(peak, pa.total_allocated_bytes() - before)
    kept = ((k, [(0, 0.5)]) for k in range(0, 10_000, 2))
    target = write_subset(DataSpec(str(tmp_path / "saved")), kept, tmp_path / "out")
    peak += tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert record.row == 9_999
    assert peak < 20_000_000  # of 30 million characters
    assert count_records(DataSpec(str(target))) == 5_000
