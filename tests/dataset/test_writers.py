"""A kept subset is the input's own rows in the input's own format, with the score beside them."""

import csv
import json
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.dataset.records import DataSpec, read_records, write_subset
from src.errors import JobError

KEPT = [(1, [(0, 0.1)]), (4, [(0, np.float32(0.25))])]


def csv_rows(path, delimiter=","):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter=delimiter))


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
def test_csv(tmp_path, suffix, mark):
    path = tmp_path / f"d.{suffix}"
    body = [["note", "filename", "title", "note"]] + [
        [f"n{k}", f"{k}.png", f'say "{k}"\r\n{mark}', ""] for k in range(6)
    ]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=mark).writerows(body)
    target = write_subset(DataSpec(str(path)), KEPT, tmp_path / "made" / "here")
    assert target == tmp_path / "made" / "here" / f"kept.{suffix}"
    expected = [[*body[0], "score"], [*body[2], "0.1"], [*body[5], "0.25"]]
    assert csv_rows(target, mark) == expected
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    assert target.read_bytes().startswith(mark.join(["note", "filename", "title", "note", "score\n"]).encode())


def test_rows_are_those_of_the_records_when_some_are_bad(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes(b'filename,title,x\nshort\n\na,"broken" x,1\nb,good,caf\xe9\n')
    spec = DataSpec(str(path))
    good = [record.row for record in read_records(spec) if record.error is None]
    assert good == [2]
    target = write_subset(spec, [(2, [(0, 1.5)])], tmp_path)
    assert target.read_bytes() == b"filename,title,x,score\nb,good,caf\xe9,1.5\n"
    with pytest.raises(JobError, match="row 0 cannot be kept: line 2"):
        write_subset(spec, [(0, [(0, 1.0)])], tmp_path)


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    table=st.lists(st.tuples(FIELD, FIELD, FIELD), min_size=1, max_size=6),
    kept=st.dictionaries(st.integers(0, 5), st.floats(allow_nan=False, allow_infinity=False)),
)
@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_any_text_survives_being_kept(tmp_path_factory, suffix, table, kept):
    folder = tmp_path_factory.mktemp("round")
    path = folder / f"d.{suffix}"
    names = ("filename", "title", "other")
    rows = [dict(zip(names, row, strict=True)) for row in table]
    match suffix:
        case "csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, quoting=csv.QUOTE_ALL).writerows([names, *table])
        case "json":
            path.write_text(json.dumps(rows))
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case _:
            pq.write_table(pa.Table.from_pylist(rows), path)
    kept = {row: score for row, score in sorted(kept.items()) if row < len(rows)}
    target = write_subset(DataSpec(str(path)), ((row, [(0, score)]) for row, score in kept.items()), folder)
    match suffix:
        case "csv":
            header, *body = csv_rows(target)
            written = [dict(zip(header, row, strict=True)) for row in body]
            written = [row | {"score": float(row["score"])} for row in written]
        case "json":
            written = json.loads(target.read_text("utf-8"))
        case "jsonl":
            written = [json.loads(line) for line in target.read_text("utf-8").split("\n")[:-1]]
        case _:
            written = pq.read_table(target).to_pylist()
    assert written == [rows[row] | {"score": score} for row, score in kept.items()]


def test_json_keeps_everything(tmp_path):
    rows = [
        {"filename": "a", "title": ["x", "y", "z"], "deep": {"k": [1, None]}},
        {"filename": "b", "title": "\u2028 ü", "lone": "\ud800"},
        {"filename": "c", "title": "t", "score": 1},
    ]
    for suffix, dump in (("json", json.dumps(rows)), ("jsonl", "\n".join(map(json.dumps, rows)))):
        (tmp_path / f"d.{suffix}").write_text(dump)
        kept = [(0, [(2, 0.5), (0, 0.75)]), (1, [(0, 0.25)])]
        target = write_subset(DataSpec(str(tmp_path / f"d.{suffix}")), kept, tmp_path)
        text = target.read_text("utf-8")
        written = json.loads(text) if suffix == "json" else [json.loads(x) for x in text.splitlines() if x]
        assert written[0] == rows[0] | {"title": ["x", "z"], "score_rs": [0.75, 0.5]}
        assert written[1] == rows[1] | {"score_rs": 0.25}


def test_sharegpt_and_an_empty_subset(tmp_path):
    rows = [{"images": [], "messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "n": 1}]
    for suffix, empty in (("json", "[\n]\n"), ("jsonl", "")):
        path = tmp_path / f"d.{suffix}"
        path.write_text(json.dumps(rows) if suffix == "json" else json.dumps(rows[0]))
        target = write_subset(DataSpec(str(path)), [(0, [(0, 0.5)])], tmp_path)
        records = list(read_records(DataSpec(str(target))))
        assert records[0].turns[1]["content"] == "a"
        assert json.loads(target.read_text().strip("[]\n")) == rows[0] | {"score": 0.5}
        assert write_subset(DataSpec(str(path)), [], tmp_path).read_text() == empty


IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def test_parquet_with_lists(tmp_path):
    rows = [{"image": {"bytes": bytes([k]), "path": f"{k}.png"}, "captions": ["a", "b", "c"], "k": k} for k in range(9)]
    for kind in (pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 3)):
        schema = pa.schema({"image": IMAGE, "captions": kind, "k": pa.int8()})
        pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "d.parquet", row_group_size=2)
        spec = DataSpec(str(tmp_path / "d.parquet"), text_column="captions")
        kept = [(2, [(2, 0.5), (0, 0.75)]), (3, [(1, 1.0)]), (8, [(0, 0.0), (1, 1.0), (2, 2.0)])]
        table = pq.read_table(write_subset(spec, kept, tmp_path))
        assert table.to_pylist() == [
            rows[2] | {"captions": ["a", "c"], "score": [0.75, 0.5]},
            rows[3] | {"captions": ["b"], "score": [1.0]},
            rows[8] | {"score": [0.0, 1.0, 2.0]},
        ]
        assert table.schema.field("k").type == pa.int8()
        assert table.schema.field("score").type == pa.list_(pa.float64())
        again = DataSpec(str(tmp_path / "kept.parquet"), text_column="captions")
        twice = pq.read_table(write_subset(again, [(1, [(0, 3.0)])], tmp_path / "again"))
        assert twice.to_pylist() == [rows[3] | {"captions": ["b"], "score": [1.0], "score_rs": [3.0]}]
        assert pq.read_table(write_subset(spec, [], tmp_path)).num_rows == 0


@pytest.mark.parametrize("several", [False, True])
def test_the_datasets_library_reads_what_was_kept(tmp_path, several, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    captions = [["a", "b"], ["c", "d"]] if several else ["a", "c"]
    kind = datasets.List(datasets.Value("string")) if several else datasets.Value("string")
    features = datasets.Features(
        {"image": datasets.Image(), "title": kind, "label": datasets.ClassLabel(names=["p", "q"])}
    )
    images = [np.full((4, 4, 3), k, np.uint8) for k in range(2)]
    made = datasets.Dataset.from_dict({"image": images, "title": captions, "label": [0, 1]}, features)
    made.to_parquet(tmp_path / "d.parquet")
    target = write_subset(DataSpec(str(tmp_path / "d.parquet")), [(1, [(0, 0.5)])], tmp_path)
    read = datasets.Dataset.from_parquet(str(target), cache_dir=str(tmp_path / "cache"))
    assert isinstance(read.features["image"], datasets.Image)
    assert read.features["label"].names == ["p", "q"]
    assert np.array_equal(read[0]["image"], images[1])
    assert (read[0]["title"], read[0]["score"]) == ((["c"], [0.5]) if several else ("c", 0.5))


def test_refusals(tmp_path):
    (tmp_path / "d.csv").write_text("filename,title\na,b\nc,d\n")
    spec = DataSpec(str(tmp_path / "d.csv"))
    with pytest.raises(JobError, match="no such row"):
        write_subset(spec, [(2, [(0, 1.0)])], tmp_path)
    with pytest.raises(ValueError, match="must rise"):
        write_subset(spec, [(1, [(0, 1.0)]), (1, [(0, 1.0)])], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["d.csv"]
    kept = write_subset(spec, [(0, [(0, 1.0)])], tmp_path)
    before = kept.read_bytes()
    with pytest.raises(JobError, match="would replace the input"):
        write_subset(DataSpec(str(kept)), [(0, [(0, 1.0)])], tmp_path)
    with pytest.raises(JobError):
        write_subset(spec, [(7, [(0, 1.0)])], tmp_path)
    assert kept.read_bytes() == before


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_writing_needs_little_memory(tmp_path, suffix):
    rows = [{"filename": f"{k}.png", "title": f"{k} " + "x" * 3000} for k in range(10_000)]
    path = tmp_path / f"d.{suffix}"
    match suffix:
        case "csv":
            path.write_text("filename,title\n" + "".join(f"{row['filename']},{row['title']}\n" for row in rows))
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case _:
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500)
    del rows
    tracemalloc.start()
    target = write_subset(DataSpec(str(path)), ((k, [(0, 0.5)]) for k in range(0, 10_000, 2)), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6_000_000
    assert sum(1 for _ in read_records(DataSpec(str(target)))) == 5_000


def test_a_link_in_the_place_of_the_subset_is_replaced_and_its_folder_left(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("filename,title\na.png,b\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "old.csv").write_text("old")
    (tmp_path / "kept").symlink_to(tmp_path / "elsewhere")
    target = write_subset(DataSpec(str(tmp_path / "in")), [(0, [(0, 1.0)])], tmp_path)
    assert not target.is_symlink()
    assert [path.name for path in target.iterdir()] == ["a.csv"]
    assert (tmp_path / "elsewhere" / "old.csv").read_text() == "old"
