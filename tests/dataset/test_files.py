"""Several files are one data set: read in order of name, numbered through, and kept in the same layout."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from src.dataset import rows
from src.dataset.files import absolute_path, find_files
from src.dataset.records import (
    DataSpec,
    count_records,
    input_fingerprint,
    inspect,
    pick_records,
    read_records,
    resolve_root,
    write_subset,
)
from src.errors import JobError
from tests.dataset.test_records import write

FORMATS = ("csv", "tsv", "json", "jsonl", "parquet")
SIZES = {"b": 3, "a": 4, "c": 1}


def table(name: str, size: int) -> list[dict]:
    return [{"filename": f"{name}{k}.png", "title": f"{name} {k}", "note": f"n{k}"} for k in range(size)]


def make(folder: Path, suffix: str) -> Path:
    folder.mkdir()
    for name, size in SIZES.items():
        write(folder / f"{name}.{suffix}", table(name, size))
    (folder / "image.png").write_bytes(b"x")
    (folder / f".hidden.{suffix}").write_bytes(b"")
    return folder


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_folder_is_read_in_order_of_name(tmp_path, suffix):
    folder = make(tmp_path / "data", suffix)
    ids = [f"{name}.{suffix}:{k:08d}" for name in "abc" for k in range(SIZES[name])]
    for path in (str(folder), f"{folder}/*.{suffix}", f"{folder}/{{c,a,b}}.{suffix}", f"{tmp_path}/d*/?.{suffix}"):
        spec = DataSpec(path)
        records = list(read_records(spec))
        assert [record.id for record in records] == ids
        assert [record.row for record in records] == list(range(8))
        assert records[5].texts == ("b 1",)
        assert count_records(spec) == 8
        assert resolve_root(spec) == (tmp_path if "d*" in path else folder)
        for start in range(10):
            assert list(read_records(spec, start, start + 3)) == records[start : start + 3]
        assert list(pick_records(spec, [6, 2, 6])) == [records[2], records[6]]


@pytest.mark.parametrize("suffix", FORMATS)
def test_kept_rows_come_in_the_files_they_were_in(tmp_path, suffix):
    folder = make(tmp_path / "data", suffix)
    kept = [(0, [(0, 0.5)]), (3, [(0, 1.5)]), (7, [(0, 2.5)])]
    for _ in range(2):  # the second time in place of the first
        target = write_subset(DataSpec(str(folder)), kept, tmp_path / "out")
        assert target == tmp_path / "out" / "kept"
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]
        assert sorted(path.name for path in target.iterdir()) == [f"a.{suffix}", f"c.{suffix}"]
    found = [row for _, _, row in find_files(str(target)).iter_rows()]
    expected = [table("a", 4)[0] | {"score": 0.5}, table("a", 4)[3] | {"score": 1.5}, table("c", 1)[0] | {"score": 2.5}]
    assert [row | {"score": float(row["score"])} for row in found] == expected
    with pytest.raises(JobError, match="row 8 cannot be kept: no such row"):
        write_subset(DataSpec(str(folder)), [(8, [(0, 1.0)])], tmp_path / "out")
    assert len(list(target.iterdir())) == 2
    with pytest.raises(JobError, match="would replace the input"):
        write_subset(DataSpec(str(target)), kept, tmp_path / "out")
    (target / "mine.md").write_text("x")
    with pytest.raises(JobError, match="no part of an earlier subset"):
        write_subset(DataSpec(str(folder)), kept, tmp_path / "out")


def test_json_scores_have_one_name_in_all_files(tmp_path):
    write(tmp_path / "a.jsonl", [{"filename": "a", "title": "t"}])
    write(tmp_path / "b.jsonl", [{"filename": "b", "title": "t", "score": 3}])
    target = write_subset(DataSpec(f"{tmp_path}/*.jsonl"), [(0, [(0, 1.0)]), (1, [(0, 2.0)])], tmp_path / "out")
    assert json.loads((target / "a.jsonl").read_text()) == {"filename": "a", "title": "t", "score_rs": 1.0}


def test_files_of_one_name_in_several_folders(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "d.csv", table(name, 2))
    write(tmp_path / "y" / "e.csv", table("e", 1))
    spec = DataSpec(f"{tmp_path}/**/*.csv")
    ids = ["x/d.csv:00000000", "x/d.csv:00000001", "y/d.csv:00000000", "y/d.csv:00000001", "e.csv:00000000"]
    assert [record.id for record in read_records(spec)] == ids
    target = write_subset(spec, [(1, [(0, 1.0)]), (2, [(0, 1.0)])], tmp_path / "out")
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*.csv")) == ["x/d.csv", "y/d.csv"]


def test_number_ranges(tmp_path):
    for k in range(9, 12):
        write(tmp_path / f"part-{k:03d}.csv", table(f"p{k}", 1))
    assert [r.texts[0] for r in read_records(DataSpec(f"{tmp_path}/part-{{009..011}}.csv"))] == [
        "p9 0",
        "p10 0",
        "p11 0",
    ]
    with pytest.raises(JobError, match=r"no file matches .*part-012\.csv, a part of"):
        find_files(f"{tmp_path}/part-{{009..012}}.csv")
    with pytest.raises(JobError, match="more than"):
        find_files(f"{tmp_path}/part-{{0..99999999}}.csv")
    write(tmp_path / "odd[1].csv", table("odd", 1))
    assert next(read_records(DataSpec(f"{tmp_path}/odd[1].csv"))).id == "odd[1].csv:00000000"


@pytest.mark.parametrize(
    ("files", "columns", "message"),
    [
        ({}, {}, "holds no data file of a supported format"),
        (
            {"a.csv": "filename,title\nx,y\n", "b.json": "[]"},
            {},
            r"b\.json is not of the same format as .*a\.csv.*\*\.csv",
        ),
        ({"a.csv": "filename,title\nx,y\n", "b.csv": ""}, {}, r"b\.csv is empty"),
        ({"a.csv": "filename,title\n", "b.csv": "filename,title\n"}, {}, "holds no records"),
        ({"a.csv": "filename,title\nx,y\n", "b.csv": "filename,title,z\n"}, {}, r"b\.csv has not the same.*'z'"),
        ({"a.csv": "filename,title\nx,y\n", "b.csv": "filename,text\nx,y\n"}, {}, r"no column 'title' in .*b\.csv"),
        (
            {"a.jsonl": '{"filename": "a", "title": "b"}', "b.jsonl": '{"filename": "a"}'},
            {},
            r"no column 'title' in .*b\.jsonl",
        ),
        (
            {"a.jsonl": '{"conversations": []}', "b.jsonl": '{"filename": "a"}'},
            {},
            r"b\.jsonl holds no conversations",
        ),
    ],
)
def test_refusals(tmp_path, files, columns, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(JobError, match=message):
        read_records(DataSpec(str(tmp_path), **columns))
    with pytest.raises(JobError, match="no file matches"):
        read_records(DataSpec(f"{tmp_path}/none-*.csv"))


def test_types_that_cannot_be_are_named_with_their_file(tmp_path):
    pq.write_table(pa.table({"filename": ["a"], "title": ["t"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"filename": ["a"], "title": [3]}), tmp_path / "b.parquet")
    with pytest.raises(JobError, match=r"'title' holds int64 in .*b\.parquet"):
        read_records(DataSpec(str(tmp_path)))


def test_the_schema_of_a_file_is_read_once(tmp_path, monkeypatch):
    for name in "abc":
        pq.write_table(pa.table({"filename": ["a"], "title": ["t"]}), tmp_path / f"{name}.parquet")
    read = []
    original = rows.arrow_schema
    monkeypatch.setattr(rows, "arrow_schema", lambda path: read.append(path.name) or original(path))
    assert inspect(DataSpec(str(tmp_path))).root == tmp_path
    assert read == ["a.parquet", "b.parquet", "c.parquet"]


def test_files_without_rows_are_fine(tmp_path):
    write(tmp_path / "b.json", table("b", 2))
    (tmp_path / "a.json").write_text("[]")
    assert [record.id for record in read_records(DataSpec(str(tmp_path)))] == ["b.json:00000000", "b.json:00000001"]


def test_parquet_files_before_the_range_are_not_read(tmp_path, monkeypatch):
    folder = make(tmp_path / "data", "parquet")
    opened = []
    original = rows.iter_rows
    files = find_files(str(folder))
    monkeypatch.setattr(rows, "iter_rows", lambda path, *rest: opened.append(path.name) or original(path, *rest))
    assert [row["title"] for _, _, row in files.iter_rows(start=5)] == ["b 1", "b 2", "c 0"]
    assert opened == ["b.parquet", "c.parquet"]


def test_fingerprint_covers_every_file(tmp_path, monkeypatch):
    folder = make(tmp_path / "data", "csv")
    spec = DataSpec(f"{folder}/*.csv")
    before = input_fingerprint(spec)
    assert before == input_fingerprint(spec)
    assert before["bytes"] == sum(path.stat().st_size for path in folder.glob("[abc].csv"))
    write(folder / "b.csv", table("B", 3))
    after = input_fingerprint(spec)
    assert [name for name in "abc" if before["files"][f"{name}.csv"] != after["files"][f"{name}.csv"]] == ["b"]
    for limit in (2**28, 2**20):  # the second has more bytes than are hashed whole
        monkeypatch.setattr("src.dataset.records._WHOLE_BYTES", limit)
        seen = set()
        for end in (b"a", b"b"):
            (folder / "c.csv").write_bytes(b"a" * 5 * 2**20 + end)
            seen.add(input_fingerprint(spec)["files"]["c.csv"])
        assert len(seen) == 2


def test_absolute_path_finds_the_same_files(tmp_path, monkeypatch):
    odd = tmp_path / "a[b]"
    make(odd, "csv")
    monkeypatch.chdir(odd)
    for path in ("?.csv", "a.csv", "."):
        relative = [p.resolve() for p in find_files(path).paths]
        absolute = absolute_path(path)
        monkeypatch.chdir(tmp_path)
        assert [p.resolve() for p in find_files(absolute).paths] == relative
        monkeypatch.chdir(odd)
