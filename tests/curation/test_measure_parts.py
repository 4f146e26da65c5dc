"""A run of measures that is cut short, at whatever moment, goes on where it was and ends in the same file."""

import errno
import json
import random
import subprocess
import sys
from functools import partial
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from src.curation import measure_job, measure_parts, measures
from src.curation.measure_job import MeasureSummary, measure_pairs
from src.curation.shards import is_whole
from src.errors import JobError
from src.model.clip import load_clip
from tests.curation.score_tables import pair, write_scores
from tests.tiny_clip import save_tiny_clip

ROOT = Path(__file__).parents[2]
RECORDS = 14
BROKEN = 5
PARTS = [0, 4, 8, 12]  # of 3 records at least, in batches of 2
ALL = ["clip_score", "image_entropy", "language", "phash", "embedding_group"]

# Forks, so that what takes long is imported once; a child is killed at its n-th look at a file of the parts' folder.
KILLED_AT_EVERY_MOMENT = """
import os, signal, sys, traceback
from src.curation import measure_parts
from src.curation.measure_job import measure_pairs
from src.curation.measures import LANGUAGES, identifier
from src.model.clip import load_clip
import pandas, scipy.fftpack  # libraries import them late

scores, clip, folder, *measures = sys.argv[1:]
clip = load_clip(clip, "cpu")
measure_parts.PART_ROWS = 3
identifier(tuple(sorted(LANGUAGES)))
FILES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}

def run(moment, deadly=True):
    looks = 0
    def look(event, arguments):
        nonlocal looks
        if event in FILES and ".parquet.partial" in str(arguments[0]):
            looks += 1
            if deadly and looks == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.addaudithook(look)
    try:
        output = f"{folder}/{moment}.parquet"
        measure_pairs(scores, output, measures, lambda: clip, similarity=0.9999, batch_size=2, workers=1)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)

moment = 1
while end := run(moment):
    assert end == -signal.SIGKILL, end
    assert run(moment, deadly=False) == 0
    moment += 1
print(moment)
"""


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """A scored data set of two captions a record: noise, one image broken, and the last image that of the third."""
    folder = tmp_path_factory.mktemp("job")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(RECORDS):
        file = BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file, "PNG")
        content = file.getvalue()[: 900 if number == BROKEN else None]
        content = rows[2]["image"]["bytes"] if number == RECORDS - 1 else content
        texts = [f"a forest beside lake {number} .", f"ein Wald am See {number} ." if number % 3 else "7 ."]
        rows.append({"image": {"bytes": content, "path": None}, "captions": texts})
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    data = {"path": str(folder / "data.parquet"), "text_column": "captions"}
    return write_scores(folder / "scores_dir", [pair(row, 0.5) for row in range(2 * RECORDS)], data)


@pytest.fixture
def measure(job, clip_path, monkeypatch):
    """Measuring in parts of 4 records."""
    monkeypatch.setattr(measure_parts, "PART_ROWS", 3)

    def run(output: Path, names=ALL, **options) -> MeasureSummary:
        load = partial(load_clip, clip_path, "cpu")
        options = {"similarity": 0.9999, "batch_size": 2, "workers": 1, **options}
        return measure_pairs(job, output, names, load, **options)

    return run


@pytest.fixture
def whole(measure, tmp_path) -> tuple[bytes, str]:
    """The file of a run that nothing disturbs, and what it says."""
    output = tmp_path / "whole.parquet"
    summary = measure(output)
    assert (summary.records, summary.pairs, summary.images) == (RECORDS, 2 * RECORDS, RECORDS - 1)
    assert summary.groups["phash_group"] == summary.groups["embedding_group"] == (1, 2, 2)
    assert summary.unreadable == {"truncated_image": 1}
    assert summary.languages == {"en": RECORDS, "de": 9, None: 5}
    assert not list(tmp_path.glob(".*.partial"))
    return output.read_bytes(), str(summary)


@pytest.fixture
def looked(monkeypatch) -> list[bytes]:
    """The bytes of the images that are opened, in order."""
    seen: list[bytes] = []
    opener = measures.open_image

    def open_image(source, *rest):
        seen.append(source["bytes"])
        return opener(source, *rest)

    monkeypatch.setattr(measures, "open_image", open_image)
    return seen


def images(job: Path, rows) -> list[bytes]:
    stored = pq.read_table(job.parent / "data.parquet")["image"].to_pylist()
    return [stored[row]["bytes"] for row in rows]


def left(output: Path) -> list[int]:
    """First rows of the parts beside an output that is not there yet."""
    folder = output.parent / f".{output.name}.partial"
    return [int(path.stem.removeprefix("part-")) for path in sorted(folder.glob("part-*.parquet"))]


@pytest.mark.parametrize("step", range(1, 2 * len(PARTS) + 5))
def test_interrupted_anywhere_then_rerun(step, job, measure, whole, looked, tmp_path, monkeypatch):
    """Before or after a part is written, in grouping, in the last step."""
    output, steps = tmp_path / "m.parquet", 0

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            raise KeyboardInterrupt

    def interrupting(call):
        def counted(*arguments):
            count()
            result = call(*arguments)
            count()
            return result

        return counted

    with monkeypatch.context() as patched:
        patched.setattr(measure_parts, "write_shard", interrupting(measure_parts.write_shard))
        patched.setattr(measure_job, "groups_of_hashes", interrupting(measure_job.groups_of_hashes))
        patched.setattr(measure_job, "_join", interrupting(measure_job._join))
        with pytest.raises(KeyboardInterrupt):
            measure(output)
    written = min(step // 2, len(PARTS))
    assert left(output) == PARTS[:written]
    assert not output.exists()
    looked.clear()
    summary = measure(output)
    assert looked == images(job, range(4 * written, RECORDS))
    assert (output.read_bytes(), str(summary)) == whole
    assert not output.with_name(".m.parquet.partial").exists()


def test_killed_at_every_moment_then_rerun(job, clip_path, whole, tmp_path):
    """``kill -9`` at each single look at, change of, or removal of a file of the folder."""
    folder = tmp_path / "killed"
    folder.mkdir()
    command = [sys.executable, "-c", KILLED_AT_EVERY_MOMENT, str(job), str(clip_path), str(folder), *ALL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = list(folder.glob("*.parquet"))
    assert len(outputs) == int(done.stdout) > 20
    assert {path.read_bytes() for path in outputs} == {whole[0]}
    assert not list(folder.glob(".*.partial"))


def cut_short(measure, output: Path, monkeypatch, **options) -> None:
    """A run that ends before its last step."""
    with monkeypatch.context() as patched:
        patched.setattr(measure_job, "_join", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            measure(output, **options)
    assert left(output)


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"names": ["phash"]}, f"measures (was {ALL}, now ['phash'])"),
        ({"languages": ["en", "de"]}, "languages (was ['ar', 'de',"),
        ({"batch_size": 3}, "batch_size (was 2, now 3); part_rows (was 4, now 3)"),
    ],
)
def test_other_settings_begin_anew_and_say_what_changed(
    options, changed, job, measure, looked, tmp_path, monkeypatch, caplog
):
    output = tmp_path / "m.parquet"
    cut_short(measure, output, monkeypatch)
    fresh = measure(tmp_path / "fresh.parquet", **options)
    assert not caplog.records
    looked.clear()
    summary = measure(output, **options)
    assert looked == images(job, range(RECORDS))
    assert [f"measuring begins anew; changed: {changed}" in record.message for record in caplog.records] == [True]
    assert output.read_bytes() == fresh.path.read_bytes()
    assert str(summary) == str(fresh)


def test_another_clip_and_other_data_begin_anew(job, measure, clip_path, tmp_path, monkeypatch, caplog):
    output = tmp_path / "m.parquet"
    cut_short(measure, output, monkeypatch)
    other = save_tiny_clip(tmp_path / "clip", seed=1)
    options = {"similarity": 0.9999, "batch_size": 2, "workers": 1}
    measure_pairs(job, output, ALL, partial(load_clip, other, "cpu"), **options)
    assert "changed: clip.fingerprint (was " in caplog.text
    fresh = measure_pairs(job, tmp_path / "fresh.parquet", ALL, partial(load_clip, other, "cpu"), **options)
    assert output.read_bytes() == fresh.path.read_bytes()
    # the same number of records, and scores of them
    cut_short(measure, output, monkeypatch, names=["language"])
    data = tmp_path / "data.parquet"
    table = pq.read_table(job.parent / "data.parquet")
    texts = [["ein Wald .", "7 ."]] * RECORDS
    pq.write_table(table.set_column(1, "captions", pa.array(texts)), data)
    scored = write_scores(tmp_path / "other", [pair(0, 0.5)], {"path": str(data), "text_column": "captions"})
    summary = measure_pairs(scored, output, ["language"], load_clip, batch_size=2)
    assert summary.languages == {"de": RECORDS, None: RECORDS}
    assert "input.bytes (was" in caplog.text


def test_what_the_last_step_needs_may_change(job, measure, looked, tmp_path, monkeypatch, caplog):
    output = tmp_path / "m.parquet"
    cut_short(measure, output, monkeypatch)
    looked.clear()
    summary = measure(output, distance=16, similarity=0.0001, workers=2, facts={"phash": 16})
    assert (looked, caplog.records) == ([], [])
    assert summary.groups["embedding_group"] == (1, RECORDS - 1, RECORDS - 1)
    assert json.loads(pq.read_schema(output).metadata[b"measures"]) == {"phash": 16}


@pytest.mark.parametrize("settings", [b"", b"[]", b"{", None])
def test_parts_of_unknown_settings_are_not_used(settings, job, measure, whole, looked, tmp_path, monkeypatch, caplog):
    output = tmp_path / "m.parquet"
    cut_short(measure, output, monkeypatch)
    path = tmp_path / ".m.parquet.partial" / "settings.json"
    path.unlink() if settings is None else path.write_bytes(settings)
    looked.clear()
    measure(output)
    assert looked == images(job, range(RECORDS))
    assert "begins anew; changed: settings.json does not read" in caplog.text
    assert output.read_bytes() == whole[0]


@pytest.mark.parametrize("damaged", [[0], [4, 12], [12], PARTS])
def test_damaged_parts_are_made_again_and_no_others(
    damaged, job, measure, whole, looked, tmp_path, monkeypatch, caplog
):
    output = tmp_path / "m.parquet"
    cut_short(measure, output, monkeypatch)
    for start in damaged:
        path = tmp_path / ".m.parquet.partial" / f"part-{start:010d}.parquet"
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    looked.clear()
    summary = measure(output)
    assert looked == images(job, [row for start in damaged for row in range(start, min(start + 4, RECORDS))])
    assert (output.read_bytes(), str(summary)) == whole
    assert caplog.text.count("is damaged and will be measured again") == len(damaged)


def test_a_change_of_any_bit_of_a_part_is_noticed(measure, tmp_path, monkeypatch):
    chance = random.Random(0)
    cut_short(measure, tmp_path / "m.parquet", monkeypatch)
    for path in sorted(tmp_path.glob(".m.parquet.partial/part-*.parquet")):
        content = path.read_bytes()
        assert is_whole(path)
        for place in chance.sample(range(len(content)), 150):
            changed = bytearray(content)
            changed[place] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            assert not is_whole(path), place


def test_a_part_that_goes_bad_before_the_last_step_is_named(measure, whole, tmp_path, monkeypatch):
    output = tmp_path / "m.parquet"
    part = tmp_path / ".m.parquet.partial" / "part-0000000004.parquet"
    finding = measure_job.groups_of_hashes

    def groups(*arguments):
        part.write_bytes(part.read_bytes()[:-9])
        return finding(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(measure_job, "groups_of_hashes", groups)
        with pytest.raises(JobError, match=r"part-0000000004.parquet does not read; run again to make it anew"):
            measure(output)
    measure(output)
    assert output.read_bytes() == whole[0]


@pytest.mark.parametrize("place", ["src.curation.shards.os.fsync", "src.curation.measure_job.sync"])
def test_full_disk_is_said_and_the_run_goes_on_later(place, job, measure, whole, looked, tmp_path, monkeypatch):
    output, error = tmp_path / "m.parquet", OSError(errno.ENOSPC, "No space left on device")
    full = Mock(side_effect=[None, None, error] if "shards" in place else error)
    with monkeypatch.context() as patched:
        patched.setattr(place, full)
        with pytest.raises(JobError, match=r"disk full at .*m\.parquet\.partial.*: free some space and rerun"):
            measure(output)
    written = left(output)
    assert written == (PARTS if "measure_job" in place else PARTS[:1])  # after the settings and one part
    assert not output.exists()
    looked.clear()
    measure(output)
    assert looked == images(job, range(4 * len(written), RECORDS))
    assert output.read_bytes() == whole[0]


def test_data_of_fewer_records_than_were_scored(job, measure, tmp_path):
    manifest = json.loads((job / "manifest.json").read_text())
    manifest["input"]["records"] = RECORDS + 1
    other = write_scores(tmp_path / "other", [pair(0, 0.5)], manifest["data"])
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(JobError, match="does not have the 15 records that were scored"):
        measure_pairs(other, tmp_path / "m.parquet", ["phash"], load_clip, batch_size=2)
    assert not (tmp_path / "m.parquet").exists()
