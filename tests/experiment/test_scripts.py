"""The scripts of the experiments: which steps they start in what folder, with a program in the place of Python's."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Notes what it is called with; a training leaves what a finished one leaves.
PYTHON = """#!/usr/bin/env bash
echo "$@" >> "$CALLS"
for argument in "$@"; do
    case "$argument" in save_folder=*|output_dir=*) mkdir -p "${argument#*=}"; folder="${argument#*=}" ;; esac
done
case "$1" in *train_*) echo '{}' > "$folder/metrics.json" ;; esac
"""


@pytest.fixture
def start(tmp_path):
    """Start a script with arguments in a folder; its calls, as names of programs, and their lines."""
    home = tmp_path / "root"
    (home / "script").mkdir(parents=True)
    for name in ("env.sh", "curation_experiment.sh", "vlm_curation_experiment.sh"):
        (home / "script" / name).write_text((ROOT / "script" / name).read_text())
    (home / "basic_env_setup.sh").write_text(f"echo {tmp_path}\n")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IEXEC)

    def run(script: str, *arguments: str) -> tuple[list[str], list[str]]:
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        env = {**os.environ, "CALLS": str(calls), "CAPTIONED": "a.parquet", "TEST": "b.parquet"}
        line = ["bash", str(home / "script" / script), *arguments]
        subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=True)
        lines = calls.read_text().splitlines()
        return [Path(line.split()[0]).stem for line in lines], lines

    return run


def test_only_a_training_that_came_to_its_end_is_left_out(start, tmp_path):
    (tmp_path / "mine" / "clip_scenes" / "final").mkdir(parents=True)  # which may be half written
    (tmp_path / "mine" / "scorer" / "scorer").mkdir(parents=True)
    programs, lines = start("curation_experiment.sh", "seeds=[7]", "output_dir=mine")
    assert programs == [
        "curation_experiment", "train_nano_base", "make_nano_clip", "make_nano_clip", "train_clip", "train_clip",
        "curation_experiment"]  # fmt: skip
    assert all("mine" in line for line in lines), "every step works in the folder that is given"
    assert not any("output/" in line for line in lines)
    for line in lines:
        if "train_clip" in line:
            assert "checkpoint.save_interval=50" in line
            assert "load_path=last" in line
        assert ("resume=true" in line) == ("train_nano_base" in line)
    assert "seeds=[7]" in lines[0]
    assert "prepare_only=true" in lines[0]
    programs, _ = start("curation_experiment.sh", "output_dir=mine")
    assert programs == ["curation_experiment", "curation_experiment"]


def test_the_score_model_of_answers_is_trained_once(start):
    programs, lines = start("vlm_curation_experiment.sh", "output_dir=mine")
    assert programs == ["vlm_curation_experiment", "train_reward", "vlm_curation_experiment"]
    assert "save_folder=mine/scorer load_path=last" in lines[1]
    assert "data.target_root=mine/learn.parquet" in lines[1]
    programs, _ = start("vlm_curation_experiment.sh", "output_dir=mine")
    assert programs == ["vlm_curation_experiment", "vlm_curation_experiment"]
