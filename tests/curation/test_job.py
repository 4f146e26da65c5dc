"""The scoring job: every record ends in the table, a killed job ends in the same bytes, another job is refused."""

import csv
import errno
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image

from python_script.score_dataset import DEFAULT_CONFIG, ScoreConfig
from src.config import flatten_keys
from src.curation import job
from src.curation.job import run_job
from src.dataset.records import DataSpec
from src.errors import JobError
from tests.conftest import LEGACY

ROOT = Path(__file__).parents[2]
MODEL = str(LEGACY / "checkpoint")


def table(output: Path) -> list[dict]:
    parts = sorted((output / "scores").glob("*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def write_csv(path: Path, rows: list[tuple], header=("filename", "title")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def bomb(path: Path) -> None:
    """A PNG whose header claims 50,000 x 50,000 pixels."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IEND"
    )


def make_bad_images(folder: Path) -> None:
    rgb = Image.fromarray(np.random.default_rng(1).integers(0, 256, (80, 90, 3), dtype=np.uint8))
    rgb.save(folder / "good.jpg")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "truncated.jpg").write_bytes((folder / "good.jpg").read_bytes()[:2000])
    (folder / "letter.jpg").write_text("dear sir or madam")
    rgb.crop((0, 0, 1, 1)).save(folder / "dot.png")
    Image.new("RGB", (20_000, 30)).save(folder / "ribbon.png")
    Image.new("RGB", (20_000, 120), "green").save(folder / "wide.png")
    bomb(folder / "bomb.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.full((60, 60), 40_000, np.uint16)).save(folder / "deep.png")
    rgb.quantize(16).save(folder / "palette.png")
    rgb.convert("RGBA").save(folder / "alpha.png")


BAD_INPUT = [
    ("good.jpg", "ships in a harbour", "ok"),
    ("lost.jpg", "x", "missing_image"),
    ("", "x", "missing_image"),
    ("empty.jpg", "x", "empty_image"),
    ("truncated.jpg", "x", "truncated_image"),
    ("letter.jpg", "x", "unreadable_image"),
    ("dot.png", "x", "image_too_small"),
    ("ribbon.png", "x", "bad_aspect_ratio"),
    ("wide.png", "x", "ok"),
    ("bomb.png", "x", "image_too_large"),
    ("cmyk.jpg", "x", "ok"),
    ("deep.png", "x", "ok"),
    ("palette.png", "x", "ok"),
    ("alpha.png", "x", "ok"),
    ("../good.jpg", "x", "unsafe_path"),
    ("/etc/hostname", "x", "unsafe_path"),
    ("http://example.org/a.jpg", "x", "unsafe_path"),
    ("good.jpg", "", "empty_text"),
    ("good.jpg", "   ", "empty_text"),
    ("good.jpg", "word " * 20_000, "text_too_long"),
    ("good.jpg", "سفن في الميناء", "ok"),
    ("good.jpg", "a <|image_pad|> b", "reserved_token"),
]


def test_bad_input_is_named_and_everything_else_is_scored(tmp_path, tiny_scorer, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    make_bad_images(folder)
    rows = [(f"r{i}", name, text) for i, (name, text, _) in enumerate(BAD_INPUT)] + [("r0", "good.jpg", "again")]
    data = write_csv(tmp_path / "data.csv", rows, ("key", "filename", "title"))
    spec = DataSpec(str(data), image_root=str(folder), id_column="key")
    summary = run_job(spec, tiny_scorer, MODEL, tmp_path / "out")
    found = {row["id"]: row for row in table(tmp_path / "out")}
    for i, (name, _, kind) in enumerate(BAD_INPUT):
        row = found[f"r{i}"]
        assert row["status"] == kind, (name, row["error"])
        assert (row["score"] is not None) == (kind == "ok")
        assert (row["error"] is None) == (kind == "ok")
    assert found[f"r0@row{len(BAD_INPUT)}"]["status"] == "duplicate_id"
    assert summary.ok == sum(kind == "ok" for *_, kind in BAD_INPUT)
    assert summary.ok + sum(summary.errors.values()) == summary.pairs == len(rows)
    assert f"{summary.ok} ok + {sum(summary.errors.values())} errors = {len(rows)} pairs" in str(summary)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["errors"] == summary.errors


def test_nan_caption_in_a_parquet_list_spoils_only_itself(tmp_path, tiny_scorer):
    image = {"bytes": (LEGACY / "images" / "harbour.png").read_bytes(), "path": "h.png"}
    columns = {"image": [image, image], "captions": [["a port", None, " "], None], "filename": ["h.png", "h.png"]}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    spec = DataSpec(str(tmp_path / "d.parquet"), text_column="captions")
    summary = run_job(spec, tiny_scorer, MODEL, tmp_path / "out")
    rows = table(tmp_path / "out")
    assert [(r["id"], r["status"]) for r in rows] == [
        ("d.parquet:00000000#0", "ok"),
        ("d.parquet:00000000#1", "empty_text"),
        ("d.parquet:00000000#2", "empty_text"),
        ("d.parquet:00000001", "empty_text"),
    ]
    assert (summary.records, summary.pairs) == (2, 4)


def test_sharegpt_with_a_broken_line(tmp_path, pictures, tiny_scorer):
    good = {
        "images": ["a.png", "b.png"],
        "messages": [
            {"from": "human", "value": "<image> or <image>?"},
            {"from": "gpt", "value": "The second."},
        ],
    }
    (pictures / "chat.jsonl").write_text(json.dumps(good) + '\n{"images": [\n' + json.dumps(good) + "\n")
    run_job(DataSpec(str(pictures / "chat.jsonl")), tiny_scorer, MODEL, tmp_path / "out")
    assert [row["status"] for row in table(tmp_path / "out")] == ["ok", "bad_record", "ok"]


@pytest.fixture
def many(pictures: Path) -> DataSpec:
    rows = [(f"{'abcdefgh'[i % 8]}.png", f"caption {i} of many") for i in range(60)]
    rows[17] = ("lost.png", "x")
    return DataSpec(str(write_csv(pictures / "many.csv", rows)))


def shards(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "scores").iterdir()}


def test_a_job_cut_short_ends_in_the_same_bytes(tmp_path, many, tiny_scorer, monkeypatch):
    run_job(many, tiny_scorer, MODEL, tmp_path / "whole", shard_size=16)
    written = []
    original = job.write_shard

    def fail_at_third(path, rows):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        original(path, rows)

    monkeypatch.setattr(job, "write_shard", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        run_job(many, tiny_scorer, MODEL, tmp_path / "cut", shard_size=16)
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "summary.json").exists()
    (tmp_path / "cut" / "scores" / "part-0000000000.parquet").unlink()
    run_job(many, tiny_scorer, MODEL, tmp_path / "cut", shard_size=16)
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")
    assert len(shards(tmp_path / "whole")) == 4


def test_kill_dash_nine_then_rerun(tmp_path, many):
    program = [sys.executable, str(ROOT / "python_script" / "score_dataset.py")]
    keys = [f"data.path={many.path}", f"model.path={MODEL}", "model.device=cpu", "shard_size=4", "model.token_budget=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([*program, *keys, f"output_dir={tmp_path / 'out'}"], env=environment)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("scores/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert 0 < len(list((tmp_path / "out").glob("scores/*.parquet"))) < 15
    done = subprocess.run(
        [*program, *keys, f"output_dir={tmp_path / 'out'}"], env=environment, capture_output=True, text=True, check=True
    )
    assert "59 ok + 1 errors = 60 pairs" in done.stdout
    subprocess.run([*program, *keys, f"output_dir={tmp_path / 'whole'}"], env=environment, check=True)
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")


def test_changed_input_or_model_is_refused_with_what_changed(tmp_path, many, tiny_scorer):
    run_job(many, tiny_scorer, MODEL, tmp_path / "out", shard_size=16)
    run_job(many, tiny_scorer, MODEL, tmp_path / "out", shard_size=16)
    with pytest.raises(JobError, match=r"changed: shard_size \(was 16, now 8\)"):
        run_job(many, tiny_scorer, MODEL, tmp_path / "out", shard_size=8)
    Path(many.path).write_text(Path(many.path).read_text() + "a.png,one more\n")
    with pytest.raises(JobError, match="changed: input"):
        run_job(many, tiny_scorer, MODEL, tmp_path / "out", shard_size=16)


def test_a_changed_file_among_several_is_named(tmp_path, pictures, tiny_scorer, monkeypatch):
    for name in "abc":
        write_csv(pictures / f"{name}.csv", [(f"{name}.png", "text")])
    monkeypatch.chdir(pictures)
    run_job(DataSpec("?.csv"), tiny_scorer, MODEL, tmp_path / "out", shard_size=2)
    monkeypatch.chdir(tmp_path.parent)
    run_job(DataSpec(f"{pictures}/?.csv"), tiny_scorer, MODEL, tmp_path / "out", shard_size=2)
    write_csv(pictures / "b.csv", [("b.png", "TEXT")])
    with pytest.raises(JobError, match=r"changed: input\.files\.b\.csv \(was .*\)\. Use"):
        run_job(DataSpec(f"{pictures}/?.csv"), tiny_scorer, MODEL, tmp_path / "out", shard_size=2)


def test_only_the_shards_asked_for_are_looked_at(tmp_path, many, tiny_scorer, monkeypatch):
    run_job(many, tiny_scorer, MODEL, tmp_path / "out", shard_size=16)
    (tmp_path / "out" / "scores" / "part-0000000032.parquet").unlink()
    begun = job.Job.of(many, MODEL, tmp_path / "out", 16)
    assert begun.open_shards() == [32]
    assert begun.done_besides([32]) == 44
    seen = []
    original = job.is_whole
    monkeypatch.setattr(job, "is_whole", lambda path: seen.append(path.name) or original(path))
    assert begun.open_shards([16, 32]) == [32]
    assert seen == ["part-0000000016.parquet", "part-0000000032.parquet"]


def test_a_data_set_is_looked_at_once_a_job(tmp_path, pictures, tiny_scorer, monkeypatch):
    """Not by every process and every run of shards again: the job, pickled or not, takes with it what it found."""
    for name in "abc":
        write_csv(pictures / f"{name}.csv", [(f"{name}.png", f"text {number}") for number in range(3)])
    begun = pickle.loads(pickle.dumps(job.Job.of(DataSpec(f"{pictures}/?.csv"), MODEL, tmp_path / "out", 2)))
    looks = []
    monkeypatch.setattr("src.dataset.rows.count_rows", looks.append)
    for module in ("src.dataset.spec", "src.dataset.records", "src.curation.job"):
        monkeypatch.setattr(f"{module}.inspect", looks.append)
    for start in begun.open_shards():
        assert begun.score(tiny_scorer, [start]) == 0
    assert begun.finish().ok == 9
    assert looks == []


def test_two_jobs_on_one_folder_and_a_full_disk(tmp_path, many, tiny_scorer, monkeypatch):
    (tmp_path / "out").mkdir()
    with job.sole_user(tmp_path / "out"), pytest.raises(JobError, match="another job is writing"):
        run_job(many, tiny_scorer, MODEL, tmp_path / "out")

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("src.curation.shards.pq.write_table", full)
    with pytest.raises(JobError, match="disk full"):
        run_job(many, tiny_scorer, MODEL, tmp_path / "out")
    monkeypatch.undo()
    assert not list((tmp_path / "out" / "scores").iterdir())
    assert run_job(many, tiny_scorer, MODEL, tmp_path / "out").ok == 59


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        ("", [], "is empty"),
        ("filename,title\n", [], "holds no records"),
        ("filename,caption\na.png,x\n", [], "title"),
        ("filename,title\na.png,x\n", ["model.path=nowhere/at-all"], "no model at"),
        ("filename,title\na.png,x\n", ["data.image_root=nowhere"], "no such image root"),
        ("filename,title\na.png,x\n", ["data.pth=x"], "data.pth"),
        ("filename,title\na.png,x\n", ["model.template=answr"], "known: answer, published_readme"),
        ("filename,title\na.png,x\n", ["model.dtype=bf17"], "dtype=bf17"),
        ("filename,title\na.png,x\n", ["model.workers=-1"], "workers=-1"),
        ("filename,title\na.png,x\n", ["shard_size=0"], "shard_size must be at least 1"),
    ],
)
def test_the_program_refuses_in_one_sentence(tmp_path, content, keys, message):
    (tmp_path / "d.csv").write_text(content)
    call = [sys.executable, "python_script/score_dataset.py", f"data.path={tmp_path / 'd.csv'}", f"model.path={MODEL}"]
    result = subprocess.run(
        [*call, f"output_dir={tmp_path / 'out'}", *keys], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("out/scores/*.parquet"))


def test_yaml_holds_every_default():
    assert flatten_keys(OmegaConf.load(DEFAULT_CONFIG)) == flatten_keys(OmegaConf.structured(ScoreConfig))
