"""Rows of damaged files: the bad one is named in its place, the others come out, and memory stays flat."""

import json
import tracemalloc
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.dataset import json_stream, rows
from src.dataset.records import DataSpec, Record, count_records, read_records
from src.errors import JobError


def read(path, **columns) -> list[Record]:
    return list(read_records(DataSpec(str(path), **columns)))


def kinds(records: list[Record]) -> list[str | None]:
    return [record.error and record.error.kind for record in records]


def essence(records):
    return [
        (replace(record, error=None), record.error and (record.error.kind, str(record.error))) for record in records
    ]


def test_csv_with_bad_rows(tmp_path):
    path = tmp_path / "d.csv"
    long, arabic = "x" * 100_000, "صورة جوية لمطار"
    lines = [
        b"\xef\xbb\xbffilename,title,note\r\n",
        b'a.jpg,"two\r\nlines, ""quoted""",1\r\n',
        b"\r\n",
        b"short.jpg,only two\r\n",
        b"long.jpg,a comma, too many,1\r\n",
        b"bytes.jpg,caf\xe9,1\r\n",
        b"b.jpg,fine,caf\xe9\r\n",
        b'quote.jpg,"Big" house,1\r\n',
        f"c.jpg,{long},1\r\n".encode(),
        f"d.jpg,{arabic},1\r\n".encode(),
        b"e.jpg,,1\r\n",
        b"f.jpg,  \t ,1\r\n",
        b",no image,1\r\n",
        b"g.jpg,123,1\r\n",
        b'open.jpg,"never closed,1\r\n',
        b"h.jpg,after it,1",
    ]
    path.write_bytes(b"".join(lines))
    records = read(path)
    good = {r.images[0]: r.texts[0] for r in records if r.error is None}
    assert good == {
        "a.jpg": 'two\r\nlines, "quoted"',
        "b.jpg": "fine",
        "c.jpg": long,
        "d.jpg": arabic,
        "g.jpg": "123",
        "h.jpg": "after it",
    }
    bad = "bad_record"
    expected = [
        None,
        bad,
        bad,
        bad,
        None,
        bad,
        None,
        None,
        "empty_text",
        "empty_text",
        "missing_image",
        None,
        bad,
        None,
    ]
    assert kinds(records) == expected
    assert "line 5: 2 fields; the header has 3" in str(records[1].error)
    assert count_records(DataSpec(str(path))) == len(expected)
    for start in range(len(expected)):
        assert essence(read_records(DataSpec(str(path)), start)) == essence(records[start:])


def test_a_field_without_end_costs_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_CSV_FIELD", 2**17)
    body = "".join(f"{k}.jpg,caption {k}\n" for k in range(20_000))
    (tmp_path / "d.csv").write_text('filename,title\nopen.jpg,"never closed\n' + body)
    records = read(tmp_path / "d.csv")
    assert len(records) == 20_001
    assert kinds(records) == ["bad_record"] + [None] * 20_000


def test_jsonl_with_bad_rows(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"filename": "a.jpg", "title": "one"}',
        b'{"filename": "b.jpg", "title": ',
        b"",
        b'{"filename": "c.jpg", "title": 12}',
        b'{"filename": "d.jpg", "title": "caf\xe9"}',
        b'{"filename": "e.jpg", "title": "\\ud800"}',
        b"[1, 2]",
        b'{"filename": "f.jpg"}',
        b'{"title": "no image"}',
        b'{"filename": 3, "title": "x"}',
        b'{"filename": "g.jpg", "title": NaN}',
        b'{"filename": "h.jpg", "title": ["one", "", null, "  ", "two"]}',
        b'{"filename": "i.jpg", "title": []}',
        b'{"filename": "j.jpg", "title": ["", null]}',
        b"[" * 100_000,
        b'{"filename": "k.jpg", "title": "last", "n": ' + b"9" * 5000 + b"}",
        b'{"filename": ["l.jpg", {"path": "m.jpg"}], "title": "two images"}',
    ]
    (tmp_path / "d.jsonl").write_bytes(b"\n".join(lines))
    records = read(tmp_path / "d.jsonl")
    bad, empty = "bad_record", "empty_text"
    expected = [None, bad, bad, bad, bad, bad, empty, "missing_image", bad, empty, None, empty, empty, bad, bad, None]
    assert kinds(records) == expected
    assert "line 2" in str(records[1].error)
    assert records[10].texts == ("one", "", "", "", "two")
    assert records[12].texts == ("", "")
    assert records[15].images == ("l.jpg", "m.jpg")
    assert count_records(DataSpec(str(tmp_path / "d.jsonl"))) == len(expected)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(values=st.lists(VALUES, max_size=6), chunk=st.integers(1, 40), indent=st.sampled_from([None, 1]))
def test_json_list_is_read_alike_in_pieces(tmp_path_factory, values, chunk, indent):
    path = tmp_path_factory.mktemp("json") / "d.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=len(values) % 2 == 0), "utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch, path.open(errors="surrogatepass", newline="") as file:
        patch.setattr(json_stream, "_CHUNK", chunk)
        assert list(json_stream.JsonList(file, "d")) == values


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[{"filename": "a", "title": "b"},\n{"filename": "a" "title": "b"}]', 2),
        ('[{"filename": "a", "title": "b"},\n\n{"filename": "a", "title": "b"', 3),
        ('[{"filename": "a", "title": "b"}\n{"filename": "a", "title": "b"}]', 2),
        ('[{"filename": "a", "title": "b"},\n]', 2),
        ('[{"filename": "a", "title": "b"},', 1),
        ('[{"filename": "a", "title": "b"}]\nmore', 2),
        ('[{"filename": "a", "title": "b"},\n{"filename": "a\nb"}]', 2),
    ],
)
@pytest.mark.parametrize("padding", [0, json_stream._CHUNK, 3 * json_stream._CHUNK])
def test_broken_json_names_the_line_before_work_starts(tmp_path, text, line, padding):
    (tmp_path / "d.json").write_text(text.replace('"b"}', '"b"' + " " * padding + "}", 1))
    with pytest.raises(JobError, match=f"line {line},"):
        count_records(DataSpec(str(tmp_path / "d.json")))
    with pytest.raises(JobError, match=f"line {line},"):
        read(tmp_path / "d.json")


def test_parquet_text_that_is_not_utf8(tmp_path):
    titles = pa.array([b"ok", b"caf\xe9", b"ok"]).cast(pa.binary()).view(pa.string())
    table = pa.table({"filename": ["a", "b", "c"], "title": titles, "id": ["i", "i", "j"]})
    pq.write_table(table, tmp_path / "d.parquet")
    assert kinds(read(tmp_path / "d.parquet")) == [None, "bad_record", None]
    records = read(tmp_path / "d.parquet", id_column="id")
    assert kinds(records) == [None, "duplicate_id", None]


def test_damaged_parquet_is_refused(tmp_path):
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"filename": ["a.png"] * 9, "title": [f"caption {k}" for k in range(9)]}), path)
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    with pytest.raises(JobError, match="not a readable Parquet file"):
        read(path)
    path.write_bytes(data[:4] + bytes(len(data) // 4) + data[4 + len(data) // 4 :])
    with pytest.raises(JobError, match="the Parquet file is damaged"):
        read(path)


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    table = [{"filename": f"{k}.png", "title": f"{k} " + "x" * 3000} for k in range(10_000)]
    path = tmp_path / f"d.{suffix}"
    match suffix:
        case "csv":
            path.write_text("filename,title\n" + "".join(f"{row['filename']},{row['title']}\n" for row in table))
        case "json":
            path.write_text(json.dumps(table))
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in table))
        case _:
            pq.write_table(pa.Table.from_pylist(table), path, row_group_size=20)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    peak = 0
    for record in read_records(DataSpec(str(path))):
        assert len(record.texts[0]) > 3000
        peak = max(peak, pa.total_allocated_bytes() - before)
    peak += tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert record.row == 9_999
    assert peak < 15_000_000  # of 30 million characters
