"""What was kept of a data set of any format, exported to any other, has the same texts and pixels when read again."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from python_script.export_subset import main
from src.curation.export import FORMATS, Export, ExportOptions, export_subset
from src.curation.rules import Rule
from src.curation.select import select_subset
from src.dataset.images import open_image
from src.dataset.records import DataSpec, Record, read_records, resolve_root
from src.errors import JobError
from tests.curation.score_tables import failed, pair, write_scores

COUNT = 8
KINDS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PNG", "JPEG", "GIF")


def encoded(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(stream, KINDS[number], **({"lossless": True} if KINDS[number] == "WEBP" else {}))
    return stream.getvalue()


def caption(number: int) -> str:
    return f'{number} ships, "grey"\nin a harbour é {number}'


def write_files(folder: Path) -> list[str]:
    """Images in folders with names that need care."""
    names = [f"sub dir/{k}.v1.{KINDS[k].lower()}" for k in range(COUNT)]
    (folder / "sub dir").mkdir(parents=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(encoded(number))
    return names


def csv_input(folder: Path) -> DataSpec:
    table = pa.table({"filename": write_files(folder), "title": [caption(k) for k in range(COUNT)]})
    with (folder / "data.csv").open("w", encoding="utf-8", newline="") as file:
        file.write("filename,title\n")
        for row in table.to_pylist():
            title = row["title"].replace('"', '""')
            file.write(f'{row["filename"]},"{title}"\n')
    return DataSpec(str(folder / "data.csv"))


def parquet_input(folder: Path) -> DataSpec:
    rows = [
        {
            "image": {"bytes": encoded(k), "path": "../../evil.png"},
            "title": [caption(k)],
            "name": f"../name.{k}/é",
            "q": "What?",
        }
        for k in range(COUNT)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    return DataSpec(str(folder / "data.parquet"), id_column="name", question_column="q")


def tar_input(folder: Path) -> DataSpec:
    with tarfile.open(folder / "data.tar", "w") as archive:
        for number in range(COUNT):
            kind = KINDS[number] if KINDS[number] in ("PNG", "JPEG", "TIFF", "WEBP") else "PNG"
            for ending, content in ((kind.lower(), encoded(number)), ("txt", caption(number).encode())):
                member = tarfile.TarInfo(f"a/b{number}.{ending.replace('jpeg', 'jpg')}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return DataSpec(str(folder / "data.tar"))


def sharegpt_input(folder: Path) -> DataSpec:
    talks = [
        {
            "images": [name],
            "messages": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "<image>\nHow many?"},
                {"from": "gpt", "value": f"{number}"},
                {"from": "human", "value": "Describe it."},
                {"from": "gpt", "value": caption(number)},
            ],
        }
        for number, name in enumerate(write_files(folder))
    ]
    (folder / "data.json").write_text(json.dumps(talks))
    return DataSpec(str(folder / "data.json"))


INPUTS = (csv_input, parquet_input, tar_input, sharegpt_input)


def selected(folder: Path, spec: DataSpec, threshold: float = 0.5) -> Path:
    """A selection of all rows but 0, whose score is too low."""
    given = {key: value for key, value in vars(spec).items() if value is not None}
    rows = [
        pair(k, k / 10 + 0.42, id=record.id) if record.error is None else failed(k)
        for k, record in enumerate(read_records(spec))
    ]
    scores = write_scores(folder / "scored", rows, given)
    return select_subset(scores, scores, Rule(fraction=None, threshold=threshold)).path.parent


def read_back(export: Export, to: str) -> list[Record]:
    return list(read_records(spec_of(export, to)))


def spec_of(export: Export, to: str) -> DataSpec:
    text = {"csv": "title", "sharegpt": "title", "datasets": "text", "webdataset": "title"}[to]
    root = str(export.image_root) if export.image_root is not None else None
    named = None if to == "sharegpt" else "id"
    question = "question" if to in ("datasets", "webdataset") else None
    # a list with relative image paths is read as it lies; references by absolute path need a root that holds them
    root = None if to == "sharegpt" and export.image_root == export.path.parent else root
    return DataSpec(str(export.path), root, text_column=text, id_column=named, question_column=question)


def pixels(record: Record, root: Path) -> np.ndarray:
    return np.asarray(open_image(record.images[0], root))


def answer(record: Record) -> str:
    return record.texts[0] if record.texts else record.turns[-1]["content"]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("make", INPUTS)
def test_every_format_from_every_input(tmp_path, make, to):
    (tmp_path / "in").mkdir()
    spec = make(tmp_path / "in")
    subset = selected(tmp_path, spec)
    options = ExportOptions(copy_images=to in ("csv", "sharegpt"), shard_size=3)
    export = export_subset(subset, to, tmp_path / "out", options, progress=False)
    assert str(export) == f"{COUNT - 1} written + 0 left out = {COUNT - 1} kept pairs"
    (tmp_path / "in").rename(tmp_path / "moved")  # the export stands by itself
    before = list(read_records(DataSpec(**{**vars(spec), "path": spec.path.replace("/in/", "/moved/")})))[1:]
    after = read_back(export, to)
    assert [record.error for record in after] == [None] * (COUNT - 1)
    assert [answer(record) for record in after] == [answer(record) for record in before]
    root_before = tmp_path / "moved"
    root_after = resolve_root(spec_of(export, to))
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(pixels(old, root_before), pixels(new, root_after))
        if to != "sharegpt":
            assert new.id == old.id.replace("/in/", "/moved/")
        if to in ("datasets", "webdataset"):
            assert new.question == old.question
    inside = tmp_path / "out"
    assert all(path.resolve().is_relative_to(inside.resolve()) for path in inside.rglob("*"))
    assert [path.name for path in inside.glob(".*")] == [".lock"]
    notes = yaml.safe_load((inside / "kept.export.yaml").read_text())
    assert (notes["format"], notes["kept"], notes["written"], notes["rule"]["threshold"]) == (to, 7, 7, 0.5)


def test_csv_references_stay_relative_to_a_root_of_choice(tmp_path):
    (tmp_path / "in").mkdir()
    subset = selected(tmp_path, csv_input(tmp_path / "in"))
    export = export_subset(subset, "csv", options=ExportOptions(image_root=tmp_path), progress=False)
    assert export.path == subset / "csv" / "kept.csv"
    head, first, *_ = export.path.read_text().split("\n")
    assert head == "filename,title,score,id"
    assert first.startswith('in/sub dir/1.v1.jpeg,"1 ships')
    assert not (subset / "csv" / "images").exists()
    assert [r.error for r in read_back(export, "csv")] == [None] * 7
    plain = export_subset(subset, "csv", progress=False)  # replaces the earlier one
    assert plain.image_root == tmp_path / "in"
    assert plain.path.read_text().split("\n")[1].startswith("sub dir/1.v1.jpeg,")
    scores = [float(line.split(",")[-2]) for line in plain.path.read_text().split("\n") if line.endswith("0000001")]
    assert scores == [0.52]


def test_sharegpt_keeps_turns_and_registers_for_llama_factory(tmp_path):
    (tmp_path / "in").mkdir()
    subset = selected(tmp_path, sharegpt_input(tmp_path / "in"))
    data = tmp_path / "LLaMA-Factory" / "data"
    data.mkdir(parents=True)
    (data / "dataset_info.json").write_text('{"identity": {"file_name": "identity.json"}}')
    export = export_subset(subset, "sharegpt", data, ExportOptions(name="rs_sft"), progress=False)
    registry = json.loads((data / "dataset_info.json").read_text())
    assert registry == {
        "identity": {"file_name": "identity.json"},
        "rs_sft": {
            "file_name": "rs_sft.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
        },
    }
    first = json.loads(export.path.read_text())[0]
    source = json.loads((tmp_path / "in" / "data.json").read_text())[1]
    assert first["messages"] == source["messages"]
    # images elsewhere are named by their absolute path, which joined to any folder stays itself
    assert first["images"] == [str(tmp_path / "in" / source["images"][0])]
    assert export.image_root == tmp_path / "in"
    again = read_records(DataSpec(str(export.path), image_root=str(export.image_root)))
    assert [open_image(record.images[0], tmp_path / "in").width for record in again] == [24] * 7
    beside = export_subset(subset, "sharegpt", tmp_path, progress=False)  # a folder that holds the images
    assert json.loads(beside.path.read_text())[0]["images"] == [f"in/{source['images'][0]}"]
    assert [record.error for record in read_records(DataSpec(str(beside.path)))] == [None] * 7
    (data / "dataset_info.json").write_text('{"rs_sft": {"file_name": "other.json"}}')
    with pytest.raises(JobError, match="has 'rs_sft' already"):
        export_subset(subset, "sharegpt", data, ExportOptions(name="rs_sft"), progress=False)


def test_captions_become_answers_to_a_question(tmp_path):
    (tmp_path / "in").mkdir()
    subset = selected(tmp_path, csv_input(tmp_path / "in"))
    export = export_subset(subset, "sharegpt", options=ExportOptions(question="Say it."), progress=False)
    item = json.loads(export.path.read_text())[0]
    said = [{"from": "human", "value": "<image>\nSay it."}, {"from": "gpt", "value": caption(1)}]
    assert (item["messages"], item["id"], item["score"]) == (said, "data.csv:00000001", 0.52)


def test_shards_and_saved_data_set_are_what_their_libraries_read(tmp_path):
    (tmp_path / "in").mkdir()
    subset = selected(tmp_path, sharegpt_input(tmp_path / "in"))
    shards = export_subset(subset, "webdataset", options=ExportOptions(shard_size=3), progress=False).path
    assert [path.name for path in sorted(shards.iterdir())] == ["000000.tar", "000001.tar", "000002.tar"]
    with tarfile.open(shards / "000000.tar") as archive:
        names = archive.getnames()
        facts = json.loads(archive.extractfile("00000001.json").read())
    # JPEG and WebP stay as they are; TIFF is a PNG of the same pixels
    assert names[::3] == ["00000001.jpg", "00000002.png", "00000003.webp"]
    assert names[1:3] == ["00000001.txt", "00000001.json"]
    assert facts["messages"][-1] == {"from": "gpt", "value": caption(1)}
    assert facts["score"] == 0.52
    saved = datasets.load_from_disk(str(export_subset(subset, "datasets", progress=False).path))
    assert isinstance(saved.features["image"], datasets.Image)
    assert saved.column_names == ["image", "text", "question", "source", "score", "id", "messages"]
    row = saved[1]
    assert np.array_equal(np.asarray(row["image"].convert("RGB")), np.asarray(open_image(encoded(2))))
    assert (row["score"], row["messages"][1]["content"]) == (pytest.approx(0.62), "<image>\nHow many?")


def test_several_captions_are_several_rows_of_one_image(tmp_path):
    rows = [{"image": {"bytes": encoded(k), "path": None}, "title": ["a", "", f"b{k}", "c"]} for k in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    table = [pair(k, 1.0 + t, id=f"d.parquet:{k:08d}#{t}", text_index=t) for k in range(3) for t in (0, 2, 3)]
    scores = write_scores(tmp_path / "s", table, {"path": str(tmp_path / "d.parquet")})
    select_subset(scores, scores, Rule(fraction=None, threshold=2.5))
    export = export_subset(scores, "csv", progress=False)
    lines = export.path.read_text().splitlines()[1:]
    assert lines[:2] == [
        "images/kept/0000/00000000.png,b0,3.0,d.parquet:00000000#2",
        "images/kept/0000/00000000.png,c,4.0,d.parquet:00000000#3",
    ]
    assert len(lines) == 6
    assert (export.path.parent / "images/kept/0000/00000001.jpg").read_bytes() == encoded(1)
    assert len(list((export.path.parent / "images").rglob("*.*"))) == 3
    tars = export_subset(scores, "webdataset", progress=False)
    assert [record.texts for record in read_back(tars, "webdataset")][:2] == [("b0",), ("c",)]


def broken_data(folder: Path) -> Path:
    """A selection of which one image is gone, one is damaged, and one record has two."""
    spec = sharegpt_input(folder)
    talks = json.loads(Path(spec.path).read_text())
    (folder / talks[1]["images"][0]).unlink()
    (folder / talks[2]["images"][0]).write_bytes(encoded(2)[:200])
    asked = {"from": "human", "value": "<image> <image>?"}
    talks[3] = {"images": talks[4]["images"] * 2, "messages": [asked, *talks[3]["messages"][-1:]]}
    Path(spec.path).write_text(json.dumps(talks))
    return selected(folder, spec)


def test_what_cannot_be_written_is_counted_and_named(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    subset = broken_data(tmp_path / "in")
    main([str(subset), "--to", "csv"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("4 written + 3 left out = 7 kept pairs (1 missing_image, 1 ")
    assert said[-1] == f"left out: {subset / 'csv' / 'kept.left_out.jsonl'}"
    reasons = [json.loads(line) for line in (subset / "csv" / "kept.left_out.jsonl").read_text().splitlines()]
    assert [reason["id"] for reason in reasons] == [f"data.json:{k:08d}" for k in (1, 2, 3)]
    assert [reason["kind"] for reason in reasons][::2] == ["missing_image", "several_images"]
    main([str(subset), "--to", "sharegpt", "--copy-images"])  # which has a place for two images
    assert capsys.readouterr().out.startswith("5 written + 2 left out = 7 kept pairs")
    for path in (tmp_path / "in" / "sub dir").iterdir():
        path.unlink()
    with pytest.raises(JobError, match=r"none of the 7 pairs .* can be written; data.json:00000001: "):
        export_subset(subset, "csv", progress=False)
    assert len((subset / "csv" / "kept.csv").read_text().splitlines()) > 4  # the earlier one is still there
    assert [path.name for path in (subset / "csv").glob(".*")] == [".lock"]


def test_other_things_are_not_replaced(tmp_path):
    (tmp_path / "in").mkdir()
    subset = selected(tmp_path, csv_input(tmp_path / "in"))
    out = tmp_path / "out"
    (out / "kept").mkdir(parents=True)
    (out / "kept" / "thesis.txt").write_text("mine")
    with pytest.raises(JobError, match="kept is in the way"):
        export_subset(subset, "datasets", out, progress=False)
    assert (out / "kept" / "thesis.txt").read_text() == "mine"
    made = export_subset(subset, "csv", out, ExportOptions(name="a", copy_images=True), progress=False)
    with pytest.raises(JobError, match="no earlier export to sharegpt"):
        export_subset(subset, "sharegpt", out, ExportOptions(name="a"), progress=False)
    # what was exported is a data set of its own, and exporting that must not replace it
    again = selected(tmp_path / "b", DataSpec(str(made.path), str(out), id_column="id"))
    with pytest.raises(JobError, match="would replace the data"):
        export_subset(again, "csv", out, ExportOptions(name="a"), progress=False)
    assert made.path.exists()


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("csv", ExportOptions(name="../up"), "bad name"),
        ("csv", ExportOptions(name="images"), "bad name"),
        ("csv", ExportOptions(image_root="nowhere"), "no such image root"),
        ("csv", ExportOptions(image_root=".", copy_images=True), "exclude one another"),
        ("webdataset", ExportOptions(shard_size=0), "shard_size"),
        ("webdataset", ExportOptions(copy_images=True), "images within"),
        ("lmdb", ExportOptions(), "unknown format"),
    ],
)
def test_bad_options_are_refused(tmp_path, to, options, message):
    (tmp_path / "in").mkdir()
    subset = selected(tmp_path, csv_input(tmp_path / "in"))
    with pytest.raises(JobError, match=message):
        export_subset(subset, to, tmp_path / "out", options, progress=False)
    assert not (tmp_path / "out").exists()


def test_no_selection(tmp_path):
    with pytest.raises(JobError, match="no selection"):
        export_subset(tmp_path, "csv", progress=False)
