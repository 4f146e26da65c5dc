"""An export clears nothing but what an earlier one wrote, and takes nothing that was not scored."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from src.curation import export
from src.curation.export import ExportOptions, export_subset
from src.curation.rules import Rule
from src.curation.select import select_subset
from src.dataset import exports
from src.dataset.images import open_image
from src.dataset.records import DataSpec, read_records
from src.dataset.writers import sole_user
from src.errors import JobError
from tests.curation.score_tables import pair, write_pictures, write_scores


def selected(folder: Path, data: dict, count: int = 3) -> Path:
    """A selection of all pictures but the first."""
    job = write_scores(folder / "job", [pair(n, float(n), id=f"data.csv:{n:08d}") for n in range(count)], data)
    return select_subset(job, job, Rule(fraction=None, threshold=0.5)).path


def test_changed_data_is_refused(tmp_path):
    subset = selected(tmp_path, write_pictures(tmp_path / "data", ["a", "b", "c"]))
    with (tmp_path / "data" / "data.csv").open("a") as file:
        file.write("0.png,d,place\n")
    with pytest.raises(JobError, match="has changed since it was scored"):
        export_subset(subset, "csv", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_images_of_the_data_are_not_cleared_away(tmp_path):
    out = tmp_path / "out"
    first = selected(tmp_path / "a", write_pictures(tmp_path / "data", ["a", "b", "c"]))
    made = export_subset(first, "csv", out, ExportOptions(copy_images=True), progress=False)
    # the exported pictures become another data set, whose table lies elsewhere, and of which 1.png is not kept
    table = tmp_path / "table.csv"
    table.write_text(made.path.read_text())
    again = selected(tmp_path / "b", {"path": str(table), "image_root": str(out)}, 2)
    for options in (ExportOptions(copy_images=True), ExportOptions()):
        with pytest.raises(JobError, match=r"would replace .*images/kept, where the image .*1\.png of the data lies"):
            export_subset(again, "csv", out, options, progress=False)
    assert sorted(path.name for path in (out / "images" / "kept").iterdir()) == ["1.png", "2.png"]
    assert made.path.exists()


def test_only_parts_of_an_earlier_export_are_removed(tmp_path):
    out = tmp_path / "out"
    subset = selected(tmp_path, write_pictures(tmp_path / "data", ["a", "b", "c"]))
    export_subset(subset, "csv", out, ExportOptions(copy_images=True), progress=False)
    assert yaml.safe_load((out / "kept.export.yaml").read_text())["parts"] == [
        *("kept.export.yaml", "kept.csv", "images/kept")
    ]
    export_subset(subset, "csv", out, progress=False)
    assert not (out / "images" / "kept").exists()
    mine = out / "images" / "kept" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    export_subset(subset, "csv", out, progress=False)
    with pytest.raises(JobError, match="images/kept is in the way"):
        export_subset(subset, "csv", out, ExportOptions(copy_images=True), progress=False)
    assert mine.read_bytes() == b"mine"


def test_two_exports_into_one_folder(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    subset = selected(tmp_path, write_pictures(tmp_path / "data", ["a", "b", "c"]))
    with sole_user(out), pytest.raises(JobError, match="another job is writing to"):
        export_subset(subset, "csv", out, progress=False)
    write = exports.write_sharegpt

    def meanwhile(*given):
        (out / "dataset_info.json").write_text('{"other": {"file_name": "other.json"}}')
        write(*given)

    monkeypatch.setattr(export.exports, "write_sharegpt", meanwhile)
    export_subset(subset, "sharegpt", out, progress=False)
    assert list(json.loads((out / "dataset_info.json").read_text())) == ["other", "kept"]


def test_shards_take_what_the_limits_of_scoring_allow(tmp_path):
    data = write_pictures(tmp_path / "data", ["a", "b", "c"])
    for name, height in (("1.png", 1), ("2.png", 2)):  # both of a format that shards do not hold
        Image.new("RGB", (24, height), "red").save(tmp_path / "data" / name, "BMP")
    subset = selected(tmp_path, data)
    made = export_subset(subset, "webdataset", tmp_path / "strict", progress=False)
    assert (made.written, made.left_out) == (1, {"image_too_small": 1})
    path = tmp_path / "job" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"limits": {"min_side": 1}}))
    made = export_subset(subset, "webdataset", tmp_path / "out", progress=False)
    assert (made.written, made.left_out) == (2, {})
    (image,) = list(read_records(DataSpec(str(made.path))))[1].images
    assert open_image(image).getpixel((23, 1)) == (255, 0, 0)
