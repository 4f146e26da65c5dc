"""The reward trainer as a program: one process and two, every launch file, a kill in mid-run, a model that scores."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from python_script import train_reward
from src.curation.scorer import Scorer
from src.dataset.preference_build import scene_groups, write_groups
from src.training.reward_config import RewardConfig
from tests.training.launches import launch_file, run_here

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "config/reward_training_stage1.yaml"
PYTHON = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """48 scenes with nine wrong captions each, a text-only group, and a row that cannot be used."""
    folder = tmp_path_factory.mktemp("sets")
    write_groups(scene_groups(range(48), size=112), folder / "scenes.parquet")
    rows = [{"question": "Why?", "chosen": "So it is.", "rejected": ["no", "x"]}, {"chosen": "bad row"}]
    (folder / "text.json").write_text(json.dumps(rows))
    return folder


def command(launcher: list[str], keys: dict[str, object]) -> list[str]:
    common = {
        "data.num_workers": 1, "run_strategy": "step", "checkpoint.save_strategy": "step", "precision": "fp32",
        "console_log_interval": 1, "scheduler.t_warmup": 1, "activation_checkpointing": "false",
        "optimizer.learning_rate": 1e-3, "checkpoint.save_num_checkpoints_to_keep": 9,
    }  # fmt: skip
    arguments = [f"{key}={value}" for key, value in {**common, **keys}.items()]
    return [*launcher, "python_script/train_reward.py", CONFIG, *arguments]


def launch(launcher: list[str], keys: dict[str, object], **environment: str) -> subprocess.CompletedProcess:
    env, line = {**os.environ, **environment}, command(launcher, keys)
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)


def logged_losses(checkpoint: Path) -> list[float]:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def score(model: Path) -> float:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8))
    return Scorer.from_pretrained(model).score([{"image": picture, "text": "a lake ."}])[0]


def test_the_program_trains_from_files_and_its_model_scores(tmp_path, sets, capsys):
    keys = {
        "save_folder": tmp_path / "out", "data.target_root": sets, "data.cache_dir": tmp_path / "cache",
        "data.eval_share": 0.3, "run_duration": 4, "checkpoint.save_interval": 2, "device_train_batch_size": 4,
        "wandb.enabled": "true",
    }  # fmt: skip
    whole = launch(PYTHON, keys)
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert "50 rows = 49 groups + 1 errors" in whole.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["train_pairs_per_second"] > 0
    assert 0 <= metrics["eval_accuracy"] <= 1
    assert list((tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb"))  # nothing left the machine
    assert list((tmp_path / "out" / "runs").rglob("events.out.tfevents*"))
    assert score(tmp_path / "out" / "final") > 0
    for changed, message in (
        ({}, "holds a run already"),
        ({"save_folder": tmp_path / "new", "data.eval_share": 1e-9}, "leaves nothing"),
        ({"save_folder": tmp_path / "new", "model.base_model_path": tmp_path / "none"}, "no processor at"),
    ):
        with pytest.raises(SystemExit) as refused:
            run_here(train_reward.main, RewardConfig, CONFIG, command([], {**keys, **changed})[2:])
        said = capsys.readouterr().err
        assert (refused.value.code, message in said) == (2, True), said[-1000:]


def test_a_killed_run_goes_on_with_the_losses_it_would_have_had(tmp_path, sets):
    keys = {
        "data.target_root": sets / "scenes.parquet", "data.cache_dir": tmp_path / "cache", "data.eval_share": 0,
        "run_duration": 5, "checkpoint.save_interval": 1, "device_train_batch_size": 4, "save_folder": tmp_path / "run",
    }  # fmt: skip
    with subprocess.Popen(command(PYTHON, keys), cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True) as process:
        reached, deadline = tmp_path / "run" / "checkpoint-2" / "trainer_state.json", time.monotonic() + 200
        while not reached.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    half = tmp_path / "run" / "checkpoint-4"  # what a kill while saving leaves
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"torn")

    resumed = launch(PYTHON, {**keys, "load_path": "last"})
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    whole = launch(PYTHON, {**keys, "save_folder": tmp_path / "whole"})
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert logged_losses(tmp_path / "run" / "checkpoint-5") == logged_losses(tmp_path / "whole" / "checkpoint-5")
    assert score(tmp_path / "run" / "final") == score(tmp_path / "whole" / "final")


def all_parts(sets: Path, folder: Path, name: str, processes: int) -> dict[str, object]:
    """Keys of 8 steps of four groups, all parts in training, whatever the number of processes."""
    return {
        "save_folder": folder / name, "data.target_root": sets / "scenes.parquet", "data.cache_dir": folder / "cache",
        "data.eval_share": 0, "run_duration": 8, "checkpoint.save_interval": 4,
        "device_train_batch_size": 4 // processes, "model.train_text_model": "true", "model.train_vision_model": "true",
        "optimizer.learning_rate": 2e-4,  # at 1e-3 rounding alone grows beyond the tolerance
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, sets):
    """A training by ``processes`` processes that were told ``told``: its folder and its losses."""
    folder = tmp_path_factory.mktemp("trained")

    def train(name: str, processes: int, told: dict[str, str], **changed: object) -> tuple[Path, list[float]]:
        keys = {**all_parts(sets, folder, name, processes), **changed}
        done = launch([*TORCHRUN, str(processes)], keys, **told, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"{processes} processes on cpu" in done.stdout
        return folder / name, logged_losses(folder / name / "checkpoint-8")

    return train


@pytest.fixture(scope="module")
def ddp(trained) -> tuple[Path, list[float]]:
    return trained("ddp", 2, launch_file("ddp"))


def test_two_processes_give_the_losses_of_one(trained, ddp):
    _, one = trained("one", 1, {})
    assert len(one) == 8
    assert ddp[1] == pytest.approx(one, abs=1e-4)


@pytest.mark.parametrize("name", ["fsdp2", "zero2", "zero3"])
def test_sharded_training_gives_the_losses_of_ddp_saves_and_resumes(trained, ddp, name):
    """With all that ``accelerate launch`` tells its processes, but two of them on CPUs."""
    told = launch_file(name)
    folder, losses = trained(name, 2, told)
    assert losses == pytest.approx(ddp[1], abs=1e-3)
    parts = {"fsdp2": "pytorch_model_fsdp.bin", "zero2": "global_step4", "zero3": "global_step4"}
    assert (folder / "checkpoint-4" / parts[name]).exists()  # that it was no plain DDP
    assert score(folder / "final") == pytest.approx(score(ddp[0] / "final"), rel=0.02)
    _, resumed = trained(name, 2, told, load_path=folder / "checkpoint-4")
    assert resumed == pytest.approx(losses, abs=1e-5)


def test_two_nodes_meet(ddp, tmp_path, sets):
    """Two launchers, as on two machines, each with one process and a rank of its own."""
    keys = all_parts(sets, tmp_path, "nodes", 2)
    nodes = []
    for rank in range(2):
        launcher = [*TORCHRUN, "1", "--nnodes", "2", "--node_rank", str(rank), "--master_port", "29517"]
        env = {**os.environ, **launch_file("ddp"), "OMP_NUM_THREADS": "1"}
        nodes.append(subprocess.Popen(command(launcher, keys), cwd=ROOT, env=env, stdout=subprocess.DEVNULL))
    assert [node.wait(280) for node in nodes] == [0, 0]
    assert logged_losses(tmp_path / "nodes" / "checkpoint-8") == pytest.approx(ddp[1], abs=1e-4)
