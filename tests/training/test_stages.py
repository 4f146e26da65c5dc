"""The three stage scripts in sequence on the nano twin, each train-then-measure, and the picture of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from src.dataset.preference_build import scene_groups, write_groups
from src.dataset.scenes import scene_seeds

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def stage(name: str, folder: Path, *keys: str, **settings: str) -> subprocess.CompletedProcess:
    unset = ("MODEL_PATH", "TARGET_ROOT", "IMAGE_ROOT", "OUTPUT_DIR", "REWARD_MODEL_PATH", "CONFIG_PATH", "CAPTIONS")
    env = {key: value for key, value in os.environ.items() if key not in unset} | settings
    line = ["bash", str(ROOT / f"script/train_reward_{name}_stage.sh"), *keys]
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False)


def accuracy(folder: Path) -> float:
    return json.loads((folder / "accuracy" / "reward_accuracy.json").read_text())["overall"]["accuracy"]


def test_three_stages_in_sequence_each_better_than_the_one_before(tmp_path):
    held_out = tmp_path / "held_out.parquet"
    write_groups(scene_groups(scene_seeds(8, 60), size=112), held_out)
    first = stage("first", tmp_path, SCENES="400")
    assert first.returncode == 0, first.stderr[-3000:]
    assert accuracy(tmp_path / "output/reward_stage1") > 0.9  # text, which needs no image
    before = stage("first", tmp_path, "save_folder=output/images", SCENES="400", HELD_OUT=str(held_out))
    assert before.returncode == 0, before.stderr[-3000:]
    for number, name in ((2, "second"), (3, "third")):
        done = stage(name, tmp_path, SCENES="250", HELD_OUT=str(held_out))
        assert done.returncode == 0, done.stderr[-3000:]
        assert (tmp_path / f"output/reward_stage{number}/final/model.safetensors").is_file()
    images, second, third = (accuracy(tmp_path / "output" / n) for n in ("images", "reward_stage2", "reward_stage3"))
    assert second > max(images, 0.7)
    assert third > second - 0.02

    again = stage("third", tmp_path, SCENES="250", HELD_OUT=str(held_out))
    assert (again.returncode, "holds a run already" in again.stderr) == (2, True)
    runs = [str(tmp_path / f"output/reward_stage{number}") for number in (1, 2, 3)]
    program = [sys.executable, str(ROOT / "python_script/evaluation/reward_curves.py")]
    for target in ("curves.html", "curves.png"):
        line = [*program, *runs, "--output", str(tmp_path / target)]
        drawn = subprocess.run(line, capture_output=True, text=True, check=False)
        assert drawn.returncode == 0, drawn.stderr[-2000:]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    refused = subprocess.run([*program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (refused.returncode, "no history.json" in refused.stderr) == (2, True)


def test_settings_reach_the_launcher_and_the_trainer(tmp_path):
    """What a cluster sets, shown by a stand-in for ``accelerate`` and ``python`` that prints its arguments."""
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    for name in ("accelerate", "python"):
        (bin_folder / name).write_text('#!/usr/bin/env bash\nprintf "%s|" "$(basename "$0")" "$@"\necho\n')
        (bin_folder / name).chmod(0o755)
    script = (ROOT / "script/train_reward_second_stage.sh").read_text()
    script = script.replace('source "$(dirname "${BASH_SOURCE[0]}")/env.sh"', f'SCORERS_ROOT="{ROOT}"')
    settings = {
        "PATH": f"{bin_folder}:{os.environ['PATH']}", "MODEL_PATH": "Qwen/Qwen2-VL-7B-Instruct", "TARGET_ROOT": "sets",
        "IMAGE_ROOT": "pictures", "ACCELERATE_CONFIG": "zero2.yaml", "NUM_MACHINES": "2", "MACHINE_RANK": "1",
        "MAIN_PROCESS_IP": "10.0.0.1", "WANDB_ENABLED": "true", "TRAIN_VISION_MODEL": "true",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", script, "script", "seed=7"],
        env=settings,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    [line] = done.stdout.strip().splitlines()  # the second node does not measure
    words = line.split("|")
    assert words[:4] == ["accelerate", "launch", "--config_file", "zero2.yaml"]
    assert words[4:10] == ["--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "10.0.0.1"]
    assert words[11].endswith("config/reward_training_stage2.yaml")
    assert words[12:-1] == [
        "save_folder=output/reward_stage2", "model.base_model_path=Qwen/Qwen2-VL-7B-Instruct",
        "data.target_root=sets", "data.image_root=pictures", "model.train_vision_model=true", "wandb.enabled=true",
        "seed=7",
    ]  # fmt: skip
