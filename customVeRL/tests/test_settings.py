"""Both settings compose over verl's and are what verl takes; the launcher passes on what it is given."""

import importlib.metadata
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
from verl.trainer.ppo.reward import resolve_reward_manager_cls
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.dataset.rl_dataset import get_dataset_class

from conftest import CONFIGS, ROOT, VERL, composed
from scorers_verl import plugin

NAMES = ["grpo_7b", "grpo_nano"]
SEVEN = (
    "trainer.n_gpus_per_node=7",
    "data.train_batch_size=504",
    "actor_rollout_ref.actor.ppo_mini_batch_size=126",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=5",
)


@pytest.fixture(params=[("grpo_7b",), ("grpo_7b", *SEVEN), ("grpo_nano",)], ids=["7b", "7b-seven-gpus", "nano"])
def config(request):
    name, *overrides = request.param
    return composed(name, *overrides)


def test_verl_takes_the_settings(config):
    validate_config(config, need_reference_policy(config), need_critic(config))
    for part in (config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.algorithm):
        omega_conf_to_dataclass(part)
    assert get_dataset_class(config.data).__name__ == "GrpoDataset"
    assert resolve_reward_manager_cls(config).__name__ == "ScoreRewardManager"


def test_every_gpu_has_whole_micro_batches(config):
    """Defect 52: 128 x 5 responses on 7 GPUs were none."""
    actor = config.actor_rollout_ref.actor
    gpus = config.trainer.n_gpus_per_node * config.trainer.nnodes
    each, rest = divmod(actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n, gpus)
    assert (rest, each % actor.ppo_micro_batch_size_per_gpu) == (0, 0)
    assert config.data.train_batch_size % actor.ppo_mini_batch_size == 0


# Keys of ours, and those that verl itself passes on unseen: to Ray, to the model's configuration, to FSDP.
OURS = re.compile(
    r"data\.(answer_key|type_key|problem_key|reward_by_type.*|reward_default|format_prompt|min_pixels|max_pixels)"
    r"|scorers(\..*)?|ray_kwargs\.ray_init\..*|.*\.(override_config|mixed_precision)(\..*)?"
)


@pytest.mark.parametrize("name", ["base", *NAMES])
def test_every_key_is_one_of_verl_or_of_ours(name):
    """A misspelt key would compose."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        known = set(flat(OmegaConf.to_container(compose("ppo_trainer"))))
    own = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    keys = set(flat({key: value for key, value in own.items() if key not in ("hydra", "defaults")}))
    assert keys
    assert [key for key in sorted(keys - known) if not OURS.fullmatch(key)] == []


def flat(value, prefix=""):
    for key, inner in value.items():
        yield f"{prefix}{key}"
        if isinstance(inner, dict):
            yield from flat(inner, f"{prefix}{key}.")


def test_published_settings():
    config = composed("grpo_7b")
    rollout, actor = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor
    assert (rollout.n, rollout.temperature, rollout.top_p, rollout.val_kwargs.temperature) == (5, 1.0, 0.99, 0.5)
    assert (config.data.train_batch_size, actor.ppo_mini_batch_size, actor.optim.lr) == (512, 128, 1e-6)
    assert (actor.kl_loss_coef, actor.kl_loss_type, actor.use_kl_loss) == (0.01, "low_var_kl", True)
    assert (config.data.min_pixels, config.data.max_pixels) == (262144, 1048576)
    assert config.scorers.format_weight == 0.3


@pytest.mark.parametrize("name", NAMES)
def test_what_a_run_writes_is_below_its_folder(name, monkeypatch, tmp_path):
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    trainer = composed(name).trainer
    written = [trainer.default_local_dir, trainer.validation_data_dir, trainer.rollout_data_dir]
    hydra = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["hydra"]["run"]["dir"]
    assert all(folder.startswith(str(tmp_path)) for folder in written)
    assert hydra.startswith("${oc.env:OUTPUT_DIR,output/")


def test_the_server_is_named_by_the_environment(monkeypatch):
    monkeypatch.delenv("REWARD_URL", raising=False)
    assert composed("grpo_7b").scorers.server_url is None
    monkeypatch.setenv("REWARD_URL", "http://10.0.0.2:8000")
    assert composed("grpo_7b").scorers.server_url == "http://10.0.0.2:8000"


def launched(tmp_path: Path, *arguments: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs the launcher with an environment whose Python only writes down how it is called."""
    python = tmp_path / "verl" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    calls = tmp_path / "calls.jsonl"
    python.write_text(
        '#!/usr/bin/env bash\n[[ "$1" == -c ]] && { echo 1; exit; }\n'
        f'printf "%s\\n" "$@" >"{calls}"\n'
        'echo "platform=${VERL_PLATFORM:-} model=${MODEL_PATH:-} url=$REWARD_URL"\n'
    )
    python.chmod(0o755)
    hidden = {"MODEL_PATH", "DATA_PATH", "EVAL_PATH", "VERL_PLATFORM", "CONFIG_NAME", "REWARD_URL"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"VERL_ENV": str(tmp_path / "verl"), "OUTPUT_DIR": str(tmp_path / "out")} | variables
    command = ["bash", str(VERL / "examples" / "train_grpo.sh"), *arguments]
    run = subprocess.run(
        command, check=False, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    return run, calls.read_text().splitlines() if calls.exists() else []


def test_the_launcher_passes_everything_on(tmp_path):
    """Defect 50: comments between continued lines ate the overrides. Each argument arrives as it was given."""
    given = ["trainer.total_epochs=1", "data.seed=7", "data.reward_by_type={look: em}"]
    settings = {"REWARD_URL": "http://box:1", "DATA_PATH": "rows of mine.parquet", "EVAL_PATH": "held.parquet"}
    run, call = launched(tmp_path, *given, CONFIG_NAME="grpo_7b", MODEL_PATH="a/model", **settings)
    assert run.returncode == 0, run.stderr
    assert call[:2] == ["-m", "verl.trainer.main_ppo"]
    assert call[-5:] == ["data.train_files=rows of mine.parquet", "data.val_files=held.parquet", *given]
    assert "platform= model=a/model url=http://box:1" in run.stdout


def test_the_launcher_without_held_out_rows_validates_nothing(tmp_path):
    run, call = launched(tmp_path, REWARD_URL="http://box:1", DATA_PATH="rows.parquet")
    assert run.returncode == 0, run.stderr
    assert call[-3:] == ["data.val_files=null", "trainer.test_freq=-1", "trainer.val_before_train=false"]
    assert f"platform=cpu model={ROOT / 'assets' / 'nano' / 'vlm-r1'} url=" in run.stdout


def test_the_launcher_names_what_is_missing(tmp_path):
    run, call = launched(tmp_path, CONFIG_NAME="grpo_7b", REWARD_URL="http://box:1")
    assert (run.returncode, call) == (1, [])
    assert "DATA_PATH is not set" in run.stderr
    run, call = launched(tmp_path, DATA_PATH="rows.parquet", SCORERS_PYTHON=str(tmp_path / "none"))
    assert run.returncode != 0
    assert "SCORERS_PYTHON" in run.stderr
    assert call == []


def test_runtime_environment_of_a_cluster():
    environment = yaml.safe_load((VERL / "examples" / "runtime_env.yaml").read_text())
    assert environment["working_dir"] == "."
    assert "/output/" in environment["excludes"]
    assert all(isinstance(value, str) for value in environment["env_vars"].values())


def test_ray_job_of_the_readme_composes():
    """Every override of the cluster command is a key."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^(?:.*&& )?ray job submit .*verl\.trainer\.main_ppo.*$", readme, re.M)
    words = shlex.split(command)
    assert f"--runtime-env={'customVeRL/examples/runtime_env.yaml'}" in words
    name = words[words.index("--config-name") + 1]
    overrides = words[words.index("--config-name") + 2 :]
    config = composed(name, *overrides)
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert config.trainer.nnodes == 2
    assert not config.scorers.server_url.startswith("http://127."), "other nodes do not reach this one's loopback"


def test_the_lock_is_complete():
    """It holds what this package wants, and what every locked package wants in turn, in versions that satisfy it."""
    lines = [line for line in (VERL / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    locked = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    project = tomllib.loads((VERL / "pyproject.toml").read_text())["project"]
    wanted = [("scorers-verl", line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]
    wanted += [(name, line) for name in locked for line in importlib.metadata.requires(name) or []]
    broken = []
    for name, line in wanted:
        requirement = Requirement(line)
        extras = [{"extra": extra} for extra in ("", "verl-core")]
        if requirement.marker and not any(map(requirement.marker.evaluate, extras)):
            continue
        version = locked.get(canonicalize_name(requirement.name), "")
        if not version or not requirement.specifier.contains(version, prereleases=True):
            broken.append(f"{name} wants {line}, the lock has {version or 'nothing'}")
    assert broken == []
    assert "trl" not in locked, "verl's workers end where TRL 1.x can be imported"


def test_another_verl_is_refused_loudly(capsys):
    plugin.check_version("0.9.1")
    with pytest.raises(RuntimeError, match=r"needs verl 0\.9\.1"):
        plugin.check_version("0.9.2")
    assert "here is verl 0.9.2" in capsys.readouterr().err


def test_advantages_are_those_of_the_formula():
    """(r - mean) / (std + 1e-6) over the responses to a prompt, std unbiased: as in TRL's trainer."""
    rng = np.random.default_rng(0)
    rewards, groups = rng.random(12), np.repeat(["a", "b", "c"], 4)
    rewards[4:8] = 0.3  # all alike: no advantage
    mask = torch.ones(12, 5)
    mask[:, 3:] = 0
    token_rewards = torch.zeros(12, 5)
    token_rewards[:, 2] = torch.from_numpy(rewards)
    found, _ = compute_grpo_outcome_advantage(token_rewards, mask, groups)
    for group in "abc":
        own = rewards[groups == group]
        mean = sum(own) / 4
        std = (sum((own - mean) ** 2) / 3) ** 0.5
        wanted = (own - mean) / (std + 1e-6)
        for advantage, row in zip(wanted, found[groups == group], strict=True):
            assert row.tolist() == pytest.approx([advantage] * 3 + [0, 0], abs=1e-4)
    assert found[4:8].abs().max() < 1e-3
