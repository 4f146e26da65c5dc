"""Records come out of every format, whole and in order, with every bad row named and no other touched."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.dataset.images import open_image
from src.dataset.records import (
    DataSpec,
    Record,
    count_records,
    input_fingerprint,
    read_records,
    resolve_root,
)
from src.errors import JobError

SHARED = Path(__file__).parents[3] / "shared" / "data"
ROWS = [{"filename": f"{k}.png", "title": f"caption {k}", "site": f"s{k % 2}", "ask": f"q{k}"} for k in range(5)]
FORMATS = ("csv", "tsv", "json", "jsonl", "parquet")


def write(path: Path, table: list[dict]) -> str:
    """A data file in the format of its suffix, written by other means than the project's."""
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(table), path, row_group_size=2)
        case ".json":
            path.write_text(json.dumps(table, indent=1))
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in table))
        case suffix:
            mark = {".csv": ",", ".tsv": "\t"}[suffix]
            quoted = [[f'"{str(cell).replace(chr(34), chr(34) * 2)}"' for cell in row.values()] for row in table]
            path.write_text("".join(mark.join(row) + "\n" for row in [list(table[0]), *quoted]), newline="")
    return str(path)


def read(path, **columns) -> list[Record]:
    return list(read_records(DataSpec(str(path), **columns)))


def kinds(records: list[Record]) -> list[str | None]:
    return [record.error and record.error.kind for record in records]


def essence(records):
    return [
        (replace(record, error=None), record.error and (record.error.kind, str(record.error))) for record in records
    ]


@pytest.mark.parametrize("suffix", FORMATS)
def test_captions_of_every_format(tmp_path, suffix):
    path = write(tmp_path / f"data.{suffix}", ROWS)
    spec = DataSpec(path, source_column="site", question_column="ask")
    records = list(read_records(spec))
    assert records[3] == Record(
        f"data.{suffix}:00000003", 3, ("3.png",), ("caption 3",), question="q3", source="s1", error=None
    )
    assert [record.row for record in records] == list(range(5))
    assert count_records(spec) == 5
    assert resolve_root(spec) == tmp_path
    for start in range(7):
        for stop in (None, *range(7)):
            assert list(read_records(spec, start, stop)) == records[start:stop]


def test_other_column_names_and_suffix_case(tmp_path):
    (tmp_path / "A.CSV").write_text("filepath,text,filename\nx.jpg,hello,no.jpg\n")
    record = read(tmp_path / "A.CSV", image_column="filepath", text_column="text")[0]
    assert (record.images, record.texts) == (("x.jpg",), ("hello",))


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@settings(max_examples=60, deadline=None)
@given(titles=st.lists(TEXTS, min_size=1, max_size=8))
@pytest.mark.parametrize("suffix", FORMATS)
def test_any_text_survives(tmp_path_factory, suffix, titles):
    path = tmp_path_factory.mktemp("any") / f"d.{suffix}"
    write(path, [{"filename": "a.png", "title": title} for title in titles])
    records = read(path)
    assert [r.texts for r in records] == [(title if title.strip() else "",) for title in titles]
    assert kinds(records) == [None if title.strip() else "empty_text" for title in titles]


def test_parquet_images_and_lists(tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = [{"bytes": b"1", "path": "a"}, {"bytes": None, "path": "b.png"}, None, {"bytes": None, "path": None}]
    captions = [["one", ""], ["two"], ["three"], None]
    table = pa.table({
        "filename": ["w", "x", "y", "z"],
        "image": pa.array(images, kind),
        "raw": pa.array([b"1", b"2", None, b""]),
        "captions": captions,
        "number": [1, 2, 3, 4],
        "word": pa.array(["p", "q", "p", None]).dictionary_encode(),
    })  # fmt: skip
    path = tmp_path / "d.parquet"
    pq.write_table(table, path)
    records = read(path, text_column="captions", source_column="number")
    assert [r.images for r in records] == [(images[0],), ("b.png",), (), ()]
    assert [r.texts for r in records] == [("one", ""), ("two",), ("three",), ("",)]
    assert kinds(records) == [None, None, "missing_image", "missing_image"]
    assert [r.source for r in records] == ["1", "2", "3", "4"]
    raw = read(path, image_column="raw", text_column="word")
    assert [r.images for r in raw] == [(b"1",), (b"2",), (), (b"",)]
    assert kinds(raw) == [None, None, "missing_image", "empty_text"]
    assert read(path, image_column="filename", text_column="word")[0].images == ({"bytes": b"1", "path": "a"},)
    with pytest.raises(JobError, match="'number' holds int64"):
        read(path, text_column="number")


def test_parquet_keeps_filename_when_image_is_no_bytes(tmp_path):
    pq.write_table(pa.table({"filename": ["f"], "image": ["i"], "title": ["t"]}), tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet")[0].images == ("f",)
    assert read(tmp_path / "d.parquet", image_column="image")[0].images == ("i",)


def conversation(*turns: tuple[str, str], images=("a.png",), keys=("messages", "from", "value"), **more) -> dict:
    name, role, content = keys
    return {"images": images, name: [{role: who, content: said} for who, said in turns], **more}


def test_sharegpt(tmp_path):
    table = [
        conversation(("human", "<image>\nWhat?"), ("gpt", "A port."), site="x"),
        conversation(("user", "Compare "), ("assistant", "They differ."), images=["a.png", "/abs/b.png"],
                     keys=("conversations", "role", "content")),
        conversation(("system", "Be brief."), ("human", "Look: <image> and <image>."), ("gpt", "1"), ("human", "And?"),
                     ("gpt", "2"), images=["a.png", "b.png"]),
        conversation(("human", "Hi"), ("gpt", "Hello"), images=[]),
        conversation(("human", "<image>"), ("gpt", "x"), images="one.png"),
        {"image": "http://x.org/a.png", "messages": [{"from": "human", "value": ""}, {"from": "gpt", "value": "y"}]},
    ]  # fmt: skip
    for suffix in ("json", "jsonl"):
        path = write(tmp_path / f"d.{suffix}", table)
        records = read(path, source_column="site")
        assert kinds(records) == [None] * 6
        assert records[0].source == "x"
        assert records[0].turns == (
            {"role": "user", "content": "<image>\nWhat?"},
            {"role": "assistant", "content": "A port."},
        )
        assert records[1].turns[0] == {"role": "user", "content": "<image><image>Compare "}
        assert [turn["role"] for turn in records[2].turns] == ["system", "user", "assistant", "user", "assistant"]
        assert records[2].turns[1]["content"] == "Look: <image> and <image>."
        assert (records[3].images, records[3].turns[0]["content"]) == ((), "Hi")
        assert records[5].images == ("http://x.org/a.png",)
        assert [r.texts for r in records] == [()] * 6
        assert records[1].images == (str(tmp_path / "a.png"), "/abs/b.png")
        assert resolve_root(DataSpec(path)) == tmp_path
        (tmp_path / "root").mkdir(exist_ok=True)
        rooted = DataSpec(path, image_root=str(tmp_path / "root"))
        assert next(islice(read_records(rooted), 1, None)).images == ("a.png", "/abs/b.png")
        assert resolve_root(rooted) == tmp_path / "root"


def test_llava(tmp_path):
    asked = [{"from": "human", "value": "<image>\n<image>\nCompare."}, {"from": "gpt", "value": "They differ."}]
    said = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
    table = [
        {"id": "1", "image": ["a.png", "b.png"], "conversations": asked},
        {"id": "2", "conversations": said},
        {"id": "3", "image": None, "images": [], "conversations": said},
        {"id": "4", "image": "a.png", "images": None, "conversations": said},
        {"id": "5", "conversations": asked},
    ]
    for suffix in ("json", "jsonl"):
        (tmp_path / "root").mkdir(exist_ok=True)
        spec = DataSpec(write(tmp_path / f"d.{suffix}", table), image_root=str(tmp_path / "root"), id_column="id")
        records = list(read_records(spec))
        assert [record.images for record in records] == [("a.png", "b.png"), (), (), ("a.png",), ()]
        assert kinds(records) == [None] * 4 + ["bad_record"]
        assert records[1].turns == ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"})
        assert records[3].turns[0]["content"] == "<image>Hello"


def test_sharegpt_with_bad_rows(tmp_path):
    table = [
        conversation(("human", "<image><image>"), ("gpt", "x")),
        conversation(("human", "<image>"), ("gpt", "x"), images=["a.png", "b.png"]),
        conversation(("gpt", "x")),
        conversation(("human", "x")),
        conversation(("human", "x"), ("gpt", " ")),
        conversation(("human", "x"), ("tool", "y"), ("gpt", "z")),
        {"images": ["a.png"]},
        {"images": ["a.png"], "messages": "no list"},
        {"images": ["a.png"], "messages": [1]},
        {"images": [None], "messages": []},
        conversation(("human", "x"), ("gpt", 3)),
        conversation(("human", "<image>"), ("gpt", "good")),
    ]
    records = read(write(tmp_path / "d.json", table))
    expected = ["bad_record"] * 4 + ["empty_text"] + ["bad_record"] * 4 + ["missing_image", "bad_record", None]
    assert kinds(records) == expected
    assert "1 <image> placeholders for 2 images" in str(records[1].error)


def test_captions_are_read_from_conversations_when_asked(tmp_path):
    table = [conversation(("human", "q"), ("gpt", "a"), filename="f.png", caption="c")]
    record = read(write(tmp_path / "d.json", table), text_column="caption")[0]
    assert (record.images, record.texts, record.turns) == (("f.png",), ("c",), ())


@pytest.mark.parametrize("suffix", FORMATS)
def test_duplicate_ids(tmp_path, suffix):
    ids = ["a", "b", "a", "c@row5", "a", "c", "c", "c@row6", "", "b"]
    table = [{"filename": f"{k}.png", "title": "t", "key": name} for k, name in enumerate(ids)]
    spec = DataSpec(write(tmp_path / f"d.{suffix}", table), id_column="key")
    records = list(read_records(spec))
    names = ["a", "b", "a@row2", "c@row5", "a@row4", "c", "c@row6@row6", "c@row6", f"d.{suffix}:00000008", "b@row9"]
    assert [r.id for r in records] == names
    twice, bad = "duplicate_id", "bad_record"
    assert kinds(records) == [None, None, twice, None, twice, None, twice, None, bad, twice]
    for start in range(len(ids)):
        assert essence(read_records(spec, start, start + 3)) == essence(records[start : start + 3])


def test_number_ids_and_generated_ids_do_not_clash(tmp_path):
    table = [{"filename": "a", "title": "t", "id": name} for name in (7, 7.5, None, "d.json:00000002", [1])]
    records = read(write(tmp_path / "d.json", table), id_column="id")
    assert [r.id for r in records] == ["7", "7.5", "d.json:00000002@row2", "d.json:00000002", "d.json:00000004"]
    assert kinds(records) == [None, None, "bad_record", None, "bad_record"]


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("d.csv", "", {}, "is empty"),
        ("d.csv", "filename,title\n", {}, "holds no records"),
        ("d.json", "[]", {}, "holds no records"),
        ("d.json", '{"a": 1}', {}, "list of objects"),
        ("d.jsonl", "\n\n", {}, "holds no records"),
        ("d.xlsx", "x", {}, r"\.csv, \.tsv, \.json, \.jsonl, \.parquet"),
        ("d.parquet", "x", {}, "not a readable Parquet file"),
        ("d.csv", "Filename,title\na,b\n", {}, "no column 'filename' in .*; it has 'Filename', 'title'.*'Filename'"),
        ("d.csv", "filename,caption\na,b\n", {"text_column": "captions"}, "'captions'.* mean 'caption'"),
        ("d.csv", "filename,title\na,b\n", {"id_column": "key"}, "no column 'key'"),
        ("d.csv", "filename,title,title\na,b,c\n", {}, "'title' occurs twice"),
        ("d.csv", "filename,title\na,b\n", {"image_root": "nowhere"}, "no such image root: nowhere"),
        ("d.csv", "filename;title\na;b\n", {}, "it has 'filename;title'"),
        ("d.jsonl", "not json\n", {}, "no column 'filename'"),
        ("d.json", '[{"filename": "a", "text": "b"}]', {}, "no column 'title'"),
    ],
)
def test_refusals(tmp_path, name, content, columns, message):
    (tmp_path / name).write_text(content)
    spec = DataSpec(str(tmp_path / name), **columns)
    for refusing in (read_records, count_records, resolve_root):
        with pytest.raises(JobError, match=message):
            refusing(spec)


def test_refusal_of_missing_files_and_odd_encodings(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(JobError):
            read_records(DataSpec(str(path)))
        with pytest.raises(JobError):
            input_fingerprint(DataSpec(str(path)))
    (tmp_path / "d.csv").write_text("filename,title\na,b\n", "utf-16")
    with pytest.raises(JobError, match="UTF-8"):
        read_records(DataSpec(str(tmp_path / "d.csv")))


def test_empty_parquet_is_refused(tmp_path):
    schema = pa.schema({"filename": pa.string(), "title": pa.string()})
    pq.write_table(schema.empty_table(), tmp_path / "d.parquet")
    with pytest.raises(JobError, match="holds no records"):
        read_records(DataSpec(str(tmp_path / "d.parquet")))


def test_fingerprint_sees_changes(tmp_path, monkeypatch):
    path = tmp_path / "d.csv"
    spec = DataSpec(str(path))
    seen = set()
    for limit in (2**28, 2**20):
        monkeypatch.setattr("src.dataset.records._WHOLE_BYTES", limit)
        for content in (b"a" * 3 * 2**20, b"a" * 3 * 2**20 + b"a", b"b" + b"a" * (3 * 2**20 - 1)):
            path.write_bytes(content)
            fingerprint = input_fingerprint(spec)
            assert fingerprint == input_fingerprint(spec)
            assert (fingerprint["name"], fingerprint["bytes"]) == ("d.csv", len(content))
            seen.add(tuple(fingerprint.values()))
    assert len(seen) == 6


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real images are not here")
def test_real_files():
    spec = DataSpec(str(SHARED / "rsicd_aid_test.parquet"), text_column="captions")
    records = list(read_records(spec))
    assert len(records) == count_records(spec) == 667
    assert kinds(records) == [None] * 667
    assert {len(record.texts) for record in records} == {5}
    assert open_image(records[-1].images[0]).mode == "RGB"
    table = DataSpec(str(SHARED / "samples" / "samples.csv"), source_column="source")
    for record in read_records(table):
        assert open_image(record.images[0], resolve_root(table)).mode == "RGB"
