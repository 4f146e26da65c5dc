"""The same table from every engine, and nothing lost where processes die."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from src.dataset.records import DataSpec
from tests.curation.test_job import MODEL, shards, write_csv

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def program(data: str, output: Path, *keys: str) -> list[str]:
    own = [f"data.path={data}", f"model.path={MODEL}", "model.device=cpu", "shard_size=4", f"output_dir={output}"]
    return [str(ROOT / "python_script" / "score_dataset.py"), *own, *keys]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> DataSpec:
    """60 pairs of eight small pictures, one of which is missing."""
    folder, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for name in "abcdefgh":
        height, width = rng.integers(40, 120, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    rows = [(f"{'abcdefgh'[i % 8]}.png", f"caption {i} of many") for i in range(60)]
    rows[17] = ("lost.png", "x")
    return DataSpec(str(write_csv(folder / "many.csv", rows)))


@pytest.fixture(scope="module")
def whole(many, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    done = run([sys.executable, *program(many.path, output)])
    assert done.returncode == 0, done.stderr[-2000:]
    return output


@pytest.mark.parametrize("how", ["local, two processes", "torchrun", "ray"])
def test_every_engine_gives_the_same_table(tmp_path, many, whole, how):
    command = {
        "local, two processes": [sys.executable, *program(many.path, tmp_path, "processes=2")],
        "torchrun": [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
            *program(many.path, tmp_path, "engine=accelerate"),
        ],
        "ray": [sys.executable, *program(many.path, tmp_path, "engine=ray", "processes=2")],
    }[how]  # fmt: skip
    done = run(command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "59 ok + 1 errors = 60 pairs" in done.stdout
    assert done.stdout.count("59 ok") == 1  # one process speaks
    assert ("process 1/2" in done.stderr) == (how != "ray")
    assert shards(tmp_path) == shards(whole)


def test_a_ray_worker_killed_in_mid_run_loses_nothing(tmp_path, many, whole):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *program(many.path, tmp_path, "engine=ray", "processes=2", "model.token_budget=1")]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        killed, deadline = 0, time.monotonic() + 120
        while not killed and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
            if len(list(tmp_path.glob("scores/*.parquet"))) < 2:
                continue
            for child in psutil.Process(running.pid).children(recursive=True):
                if "_RayWorker" in " ".join(child.cmdline()) or "MapWorker" in " ".join(child.cmdline()):
                    child.send_signal(signal.SIGKILL)
                    killed += 1
                    break
        out, err = running.communicate(timeout=200)
    assert killed == 1
    assert running.returncode == 0, err[-3000:]
    assert "59 ok + 1 errors = 60 pairs" in out
    alone = tmp_path / "alone"
    run([sys.executable, *program(many.path, alone, "model.token_budget=1")])
    assert shards(tmp_path) == shards(alone)


def test_killed_at_ten_random_moments_and_one_table(tmp_path, many, whole):
    """``kill -9``, ten times, each at another moment of a run, before the run that finishes."""
    chance = random.Random(0)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *program(many.path, tmp_path)]
    started = time.monotonic()
    run([sys.executable, *program(many.path, tmp_path / "timed")])
    length = time.monotonic() - started
    for _ in range(10):
        running = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.5, 1.0) * length)
        running.kill()
        running.wait()
        for part in tmp_path.glob("scores/part-*.parquet"):
            pq.read_table(part)  # never half there
    done = run(command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert shards(tmp_path) == shards(whole)


def test_a_corrupt_shard_is_noticed_and_scored_again(tmp_path, many, whole):
    command = [sys.executable, *program(many.path, tmp_path)]
    assert run(command).returncode == 0
    parts = sorted(tmp_path.glob("scores/part-*.parquet"))
    flipped = bytearray(parts[1].read_bytes())
    column = pq.ParquetFile(parts[1]).metadata.row_group(0).column(3)
    assert column.path_in_schema == "score"
    flipped[column.data_page_offset + column.total_compressed_size - 30] ^= 1  # in a page, where its checksum tells
    parts[1].write_bytes(flipped)
    parts[3].write_bytes(parts[3].read_bytes()[:-40])
    again = run(command)
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stderr.count("is damaged and will be scored again") == 2
    assert shards(tmp_path) == shards(whole)


def test_a_full_disk_is_said_and_the_job_goes_on_later(tmp_path, many, whole):
    """On a small file system of its own, filled to the brim."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs rights that this user does not have")
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(420 * 1024))
        output = disk / "out"
        full = run([sys.executable, *program(many.path, output)])
        assert (full.returncode, "disk full at" in full.stderr) == (2, True), full.stderr[-2000:]
        ballast.unlink()
        done = run([sys.executable, *program(many.path, output)])
        assert done.returncode == 0, done.stderr[-2000:]
        assert shards(output) == shards(whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_an_engine_refuses(tmp_path, many, whole):
    unknown = run([sys.executable, *program(many.path, tmp_path, "engine=spark")])
    assert (unknown.returncode, "use one of local, accelerate, ray" in unknown.stderr) == (2, True)
    for keys in (["processes=2"], ["engine=ray"]):
        other = run([sys.executable, *program(many.path, whole, "model.template=published_readme", *keys)])
        assert other.returncode != 0
        assert "changed: template" in other.stderr
