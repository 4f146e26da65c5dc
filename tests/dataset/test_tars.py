"""WebDataset tars: members become records without touching the disk, and kept samples keep their bytes."""

import io
import json
import tarfile
import tracemalloc
from itertools import chain
from pathlib import Path

import pytest

from src.dataset import tars
from src.dataset.images import ImageLimits
from src.dataset.records import DataSpec, Record, count_records, pick_records, read_records, write_subset
from src.errors import JobError
from tests.dataset.test_records import essence


def write_tar(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = len(content), 1_600_000_000, 0o640
            archive.addfile(member, io.BytesIO(content))
    return path


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive if member.isfile()]


def read(path, **columns) -> list[Record]:
    return list(read_records(DataSpec(str(path), **columns)))


def kinds(records: list[Record]) -> list[str | None]:
    return [record.error and record.error.kind for record in records]


def pair(key: str, text: str = "a port", **more) -> list[tuple[str, bytes]]:
    found = [(f"{key}.jpg", f"jpeg {key}".encode()), (f"{key}.txt", text.encode())]
    return found + ([(f"{key}.json", json.dumps(more).encode())] if more else [])


def test_members_are_grouped_by_key(tmp_path):
    path = tmp_path / "d.tar"
    long = "deep/" * 30 + "010"
    content = [
        ("./", b""),
        *pair("x/001", "one\n", title="no", url="u1", site="s"),
        (".DS_Store", b"x"),
        ("x/._001.jpg", b"x"),
        ("__meta__.json", b"{}"),
        *pair("y/001", "two"),
        ("002.PNG", b"png"),
        ("002.json", b'{"title": "t", "caption": "c", "site": 3}'),
        ("003.left.jpg", b"l"),
        ("003.right.tiff", b"r"),
        ("003.txt", "fünf".encode()),
        ("003.cls", b"7\n"),
        *pair(long, "far"),
    ]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        records = read(write_tar(path, content, kind), source_column="site")
        assert [record.id for record in records] == [f"d.tar:{k:08d}" for k in range(5)]
        assert [record.texts for record in records] == [("one",), ("two",), ("",), ("fünf",), ("far",)]
        assert kinds(records) == [None, None, "empty_text", None, None]
        assert records[0].images == ({"bytes": b"jpeg x/001", "path": "x/001.jpg"},)
        assert [image["bytes"] for image in records[3].images] == [b"l", b"r"]
        assert [record.source for record in records] == ["s", "", "3", "", ""]
    named = read(path, text_column="caption", id_column="__key__", source_column="cls")
    assert [record.id for record in named] == ["x/001", "y/001", "002", "003", long]
    assert named[2].texts == ("c",)
    assert named[3].source == "7"
    assert count_records(DataSpec(str(path))) == 5
    assert list(pick_records(DataSpec(str(path)), [1, 4])) == [read(path)[1], read(path)[4]]
    for start in range(6):
        assert essence(read(path)[start:]) == essence(read_records(DataSpec(str(path)), start))


@pytest.mark.parametrize("key", ["caption", "text", "title"])
def test_captions_in_json(tmp_path, key):
    content = [("1.jpg", b"x"), ("1.json", json.dumps({"other": "o", key: "said"}).encode())]
    assert read(write_tar(tmp_path / "d.tar", content))[0].texts == ("said",)


def test_conversations_in_json(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A port."}]
    content = [("1.jpg", b"x"), ("1.json", json.dumps({"image": "gone.jpg", "conversations": turns}).encode())]
    record = read(write_tar(tmp_path / "d.tar", content))[0]
    assert record.error is None
    assert record.images[0]["bytes"] == b"x"
    assert record.turns[1]["content"] == "A port."


def test_images_of_paths_in_json(tmp_path):
    content = [("1.json", b'{"filename": "a.png", "caption": "c"}')]
    assert read(write_tar(tmp_path / "d.tar", content))[0].images == ("a.png",)


def test_bad_members_are_errors_in_their_place(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageLimits, "max_bytes", 100)
    monkeypatch.setattr(tars, "MAX_VALUE", 100)
    content = [
        *pair("0", "fine", site="s"),
        ("1.jpg", b"x"),
        ("2.txt", b"no image"),
        ("3.jpg", b"x" * 101),
        ("3.txt", b"too large"),
        ("4.jpg", b"x"),
        ("4.txt", b"caf\xe9"),
        ("5.jpg", b"x"),
        ("5.txt", b"x" * 101),
        ("6.jpg", b"x"),
        ("6.txt", b"t"),
        ("6.json", b"{"),
        ("7.jpg", b"x"),
        ("7.txt", b"t"),
        ("7.json", b"[1]"),
        *pair("8", "fine"),
        *pair("8", "the key again"),
    ]
    path = write_tar(tmp_path / "d.tar", content)
    records = read(path, source_column="site")
    bad = "bad_record"
    expected = [None, "empty_text", "missing_image", "image_too_large", bad, bad, bad, bad, None, None]
    assert kinds(records) == expected
    assert "7.json holds no object but list" in str(records[7].error)
    assert kinds(read(path))[6:8] == [None, None]  # the JSON is not needed


def test_damaged_tars_are_refused_by_name(tmp_path):
    content = [member for k in range(30) for member in pair(f"{k:03d}", "text " * 300)]
    whole = write_tar(tmp_path / "d.tar", content).read_bytes()
    spec = DataSpec(str(tmp_path / "d.tar"))
    header = 512 * 12
    assert whole[header : header + 3].isdigit()
    for damaged in (whole[:20_000], whole[: header + 100], whole[:header] + b"\7" * 512 + whole[header + 512 :]):
        (tmp_path / "d.tar").write_bytes(damaged)
        with pytest.raises(JobError, match=r"d\.tar is not a readable tar, or damaged"):
            count_records(spec)
        with pytest.raises(JobError, match=r"d\.tar is not a readable tar, or damaged"):
            list(read_records(spec))
    for damaged, message in ((b"no tar at all" * 900, "not a readable tar"), (bytes(10_240), "holds no records")):
        (tmp_path / "d.tar").write_bytes(damaged)
        with pytest.raises(JobError, match=message):
            read_records(spec)


def test_kept_samples_keep_their_bytes(tmp_path):
    content = [pair(f"s/{k}", f"text {k}\n", n=k) for k in range(6)]
    path = write_tar(tmp_path / "d.tar", [*chain(*content)])
    target = write_subset(DataSpec(str(path)), [(1, [(0, 0.25)]), (5, [(0, -1.5)])], tmp_path / "out")
    assert target == tmp_path / "out" / "kept.tar"
    assert members(target) == [
        *content[1], ("s/1.score.json", b"0.25"), *content[5], ("s/5.score.json", b"-1.5")
    ]  # fmt: skip
    with tarfile.open(target) as archive:
        assert {(member.mtime, member.mode) for member in archive} == {(1_600_000_000, 0o640), (1_600_000_000, 0o644)}
    again = write_subset(DataSpec(str(target)), [(0, [(0, 2.0)])], tmp_path / "again")
    assert members(again)[-2:] == [("s/1.score.json", b"0.25"), ("s/1.score_rs.json", b"2.0")]


def test_scores_of_several_captions(tmp_path):
    captions = json.dumps({"captions": ["a", "b", "c"]}).encode()
    path = write_tar(tmp_path / "d.tar", [("1.jpg", b"x"), ("1.json", captions)])
    spec = DataSpec(str(path), text_column="captions")
    target = write_subset(spec, [(0, [(2, 0.5), (0, 1.0)])], tmp_path / "out")
    assert members(target) == [*members(path), ("1.score.json", b"[1.0, null, 0.5]")]


def test_shards(tmp_path):
    (tmp_path / "data").mkdir()
    for k in range(3):
        write_tar(
            tmp_path / "data" / f"shard-{k:03d}.tar", [*chain(*(pair(f"{k}{n}", f"t {k} {n}") for n in range(3)))]
        )
    for path in (f"{tmp_path}/data", f"{tmp_path}/data/shard-{{000..002}}.tar", f"{tmp_path}/data/*.tar"):
        spec = DataSpec(path)
        records = list(read_records(spec))
        assert [record.texts[0] for record in records] == [f"t {k} {n}" for k in range(3) for n in range(3)]
        assert records[4].id == "shard-001.tar:00000001"
        assert list(read_records(spec, 4, 8)) == records[4:8]
        target = write_subset(spec, [(4, [(0, 1.0)]), (8, [(0, 2.0)])], tmp_path / "out")
        assert sorted(found.name for found in target.iterdir()) == ["shard-001.tar", "shard-002.tar"]
        assert members(target / "shard-002.tar") == [*pair("22", "t 2 2"), ("22.score.json", b"2.0")]


def test_memory_does_not_grow_with_the_tar(tmp_path):
    count = 4000
    image = bytes(10_000)
    pairs = ([(f"{k:06d}.jpg", image), (f"{k:06d}.txt", b"text")] for k in range(count))
    path = write_tar(tmp_path / "d.tar", [*chain(*pairs)])
    tracemalloc.start()
    assert sum(1 for _ in read_records(DataSpec(str(path)))) == count
    target = write_subset(DataSpec(str(path)), ((k, [(0, 0.5)]) for k in range(count)), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000  # of 40 million bytes
    assert count_records(DataSpec(str(target))) == count
