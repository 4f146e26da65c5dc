"""Every YAML file belongs to a program, loads into its schema, and shows every key; programs explain themselves."""

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from omegaconf import OmegaConf

from python_script.build_preference import BuildConfig
from python_script.evaluation.reward_accuracy import AccuracyConfig
from python_script.measure_pairs import MeasureConfig
from python_script.score_dataset import ScoreConfig
from python_script.select_subset import SelectConfig
from src.config import flatten_keys, load_config
from src.experiment.clip_curation import ClipCurationConfig
from src.experiment.vlm_curation import VlmCurationConfig
from src.serving.config import ServerConfig
from src.training.clip_config import ClipConfig
from src.training.grpo_config import GrpoConfig
from src.training.nano_parts import NanoConfig
from src.training.reward_config import RewardConfig
from src.training.vlm_config import VlmConfig

ROOT = Path(__file__).parents[1]
SCHEMAS = {
    "build_preference.yaml": BuildConfig,
    "clip_training_remoteclip.yaml": ClipConfig,
    "nano/curation_experiment.yaml": ClipCurationConfig,
    "nano/vlm_curation_experiment.yaml": VlmCurationConfig,
    "nano/clip_training.yaml": ClipConfig,
    "measure_pairs.yaml": MeasureConfig,
    "grpo.yaml": GrpoConfig,
    "nano/grpo.yaml": GrpoConfig,
    "nano/reward_training.yaml": RewardConfig,
    "nano/train_base.yaml": NanoConfig,
    "reward_accuracy.yaml": AccuracyConfig,
    "reward_server.yaml": ServerConfig,
    "reward_training_stage1.yaml": RewardConfig,
    "reward_training_stage2.yaml": RewardConfig,
    "reward_training_stage3.yaml": RewardConfig,
    "nano/vlm_pretrain.yaml": VlmConfig,
    "nano/vlm_sft.yaml": VlmConfig,
    "pretrain_finetuning.yaml": VlmConfig,
    "score_dataset.yaml": ScoreConfig,
    "select_subset.yaml": SelectConfig,
    "sft_finetuning.yaml": VlmConfig,
}
REQUIRED = {
    "way": "scenes",
    "output": "x",
    "data.target_root": "x",
    "data.path": "x",
    "data.train": "x",
    "data.val": "x",
    "data.captioned": "x",
    "data.test": "x",
}


def test_every_config_file_has_a_program():
    names = {str(path.relative_to(ROOT / "config")) for path in ROOT.glob("config/**/*.yaml")}
    assert sorted(SCHEMAS) == sorted(name for name in names if not name.startswith("accelerate/"))


@pytest.mark.parametrize("path", sorted(ROOT.glob("config/accelerate/*.yaml")), ids=lambda path: path.stem)
def test_launch_files_hold_what_accelerate_knows(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == 8
    assert config.distributed_type == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(path.stem, "DEEPSPEED")


@pytest.mark.parametrize("name", SCHEMAS)
def test_config_files_load_and_show_every_key(name):
    schema = OmegaConf.structured(SCHEMAS[name])
    shown = flatten_keys(OmegaConf.load(ROOT / "config" / name))
    keys = flatten_keys(schema)
    maps = ("source_weights", "by_kind")  # their keys are names in the data
    missing = {key for key in keys if key not in shown and not key.endswith(maps)}
    assert not missing
    load_config(SCHEMAS[name], ROOT / "config" / name, [f"{k}={v}" for k, v in REQUIRED.items() if k in keys])


@pytest.mark.parametrize(
    "program", ["build_preference.py", "serve_reward.py", "train_reward.py", "evaluation/reward_accuracy.py"]
)
def test_help_names_the_program_and_its_keys(program):
    command = [sys.executable, f"python_script/{program}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: python python_script/{program} [CONFIG] [key=value ...]" in done.stdout
