"""Reinforcement of Qwen2-VL: batches, rewards that are left out, and small real runs with and without images."""

import json
import os
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoTokenizer

from python_script import train_grpo
from src.config import load_config
from src.dataset.instructions import scene_conversations, write_instructions
from src.dataset.scenes import scene_seeds
from src.errors import JobError, RecordError
from src.model.checkpoint import locate
from src.training.grpo import train_grpo as train
from src.training.grpo_config import GrpoConfig, Rewards
from src.training.grpo_data import SeparateBatches, reward_of

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config/nano/grpo.yaml"


def test_a_batch_is_of_one_group_and_an_epoch_has_every_prompt():
    groups = [np.arange(0, 10), np.arange(10, 13)]
    sampler = SeparateBatches(groups, prompts=4, generations=2, repeats=3, seed=5)
    drawn = np.array(list(sampler)).reshape(-1, 3, 4, 2)
    assert drawn.size == len(sampler)
    assert (drawn == drawn[:, :1, :, :1]).all()  # repeats of a batch, generations of a prompt
    batches = drawn[:, 0, :, 0]
    assert len(batches) == 3 + 1
    assert {frozenset(row < 10) for row in batches} == {frozenset([True]), frozenset([False])}
    assert set(batches.flatten()) == set(range(13))
    again, other = (SeparateBatches(groups, 4, 2, 3, 5) for _ in range(2))
    again.set_epoch(1)
    sampler.set_epoch(1)
    assert list(sampler) == list(again) != list(other)


def test_the_kind_of_a_record_decides_its_reward():
    rewards = Rewards(by_kind={"caption": "open_ended", "wrong": "x"}, default="math")
    found = [reward_of(kind, rewards) for kind in ("caption", "iou", "count", "")]
    assert found == ["open_ended", "iou", "math", "math"]
    with pytest.raises(JobError, match="'x' is not one of em, iou"):
        reward_of("wrong", rewards)


@pytest.mark.parametrize("name", ["grpo", "vlm_sft"])
def test_the_longest_answers_about_scenes_may_be_given_in_full(name):
    config = OmegaConf.load(ROOT / f"config/nano/{name}.yaml")
    limits = [config[part].max_new_tokens for part in ("rollout", "evaluation") if part in config]
    tokenizer = AutoTokenizer.from_pretrained(locate("assets/nano/vlm-r1"))
    told = scene_conversations(scene_seeds(3, 200), ("grounding", "caption"), 2, 56, thinking=name == "grpo")
    lengths = [len(tokenizer(conversation["turns"][-1][2])["input_ids"]) for conversation in told]
    assert min(limits) > max(lengths) > 96, "six boxes"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """In ``train.jsonl`` 12 questions about scenes and 6 without an image; in ``held_out.jsonl`` one of each kind."""
    folder = tmp_path_factory.mktemp("grpo")
    kinds = ("caption", "count", "grounding")
    write_instructions(scene_conversations(scene_seeds(1, 4), kinds, 3, 64), folder / "train.jsonl")
    with (folder / "train.jsonl").open("a") as file:
        for k in range(6):
            said = [{"from": "human", "value": f"What is {k} + 1 ?"}, {"from": "gpt", "value": str(k + 1)}]
            file.write(json.dumps({"id": f"sum-{k}", "kind": "sum", "messages": said}) + "\n")
    write_instructions(scene_conversations(scene_seeds(2, 1), kinds, 3, 64), folder / "held_out.jsonl")
    return folder


def config_of(data: Path, out: Path, **keys: object) -> GrpoConfig:
    settings = {
        "model.model_name": locate("assets/nano/base"), "model.lora_rank": 0, "model.train_merger": True,
        "model.train_vision_tower": True, "optimizer.learning_rate": 1e-4, "data.path": data / "train.jsonl",
        "data.cache_dir": data / "cache", "save_folder": out,
        "precision": "fp32", "run_duration": 3, "device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "rollout.num_generations": 4, "rollout.max_new_tokens": 6,
        "console_log_interval": 1, "checkpoint.save_interval": 2, "checkpoint.save_num_checkpoints_to_keep": 0,
        "evaluation.max_new_tokens": 4, "seed": 4, **keys,
    }  # fmt: skip
    return load_config(GrpoConfig, CONFIG, [f"{key}={value}" for key, value in settings.items()])


def rewarded_by_length(monkeypatch) -> list[tuple[str, tuple, list[str]]]:
    """An untrained model never keeps the format: every response is taken as an answer in it. Returns what is scored."""
    asked = []

    def scorer(items):
        asked.extend(items)
        return [[float(len(texts[0])), 3.0] for _, _, texts in items]

    monkeypatch.setattr("src.rewards.rewards.read_response", lambda response: response or "nothing")
    rewarded_by_length.scorer = scorer
    return asked


def logged(out: Path, name: str) -> list[float]:
    return [entry[name] for entry in json.loads((out / "history.json").read_text()) if name in entry]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Three steps with all kinds of rewards, with and without images; what was scored, metrics and folder."""
    out = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        asked = rewarded_by_length(patch)
        metrics = train(config_of(data, out, **{"data.eval_path": data / "held_out.jsonl"}), rewarded_by_length.scorer)
    return asked, metrics, out


def test_a_run_rewards_all_kinds_and_tells_held_out_answers(run, data):
    asked, metrics, out = run
    assert {"before_accuracy", "before_format", "eval_accuracy", "eval_accuracy_grounding", "eval_precision_grounding",
            "first_reward", "last_reward"} <= set(metrics)  # fmt: skip
    assert "eval_loss" not in metrics
    assert {"before_reward", "eval_reward", "eval_reward_caption"} <= set(metrics)
    names = {name for entry in json.loads((out / "history.json").read_text()) for name in entry}
    assert {"reward_em", "accuracy_em", "format", "masked", "unparsed"} <= names
    assert logged(out, "masked") == [0, 0, 0]
    assert len(asked) >= 4 + 2, "of a group, and of held-out captions before and after"
    for question, images, (answer, reference) in asked:
        assert "<image>" not in question
        assert Path(images[0]["path"]).is_file()
        assert answer
        assert reference.strip()
    told = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert {record["kind"] for record in told} == {"caption", "count", "grounding"}
    rewards = [record["reward"] for record in told]
    assert metrics["eval_reward"] == pytest.approx(np.mean(rewards))
    assert all(0 <= reward <= 1 for reward in rewards)
    assert (out / "final" / "model.safetensors").is_file()


def test_a_run_goes_on_where_it_stopped(run, data, tmp_path, monkeypatch):
    _, _, whole = run
    (tmp_path / "checkpoint-2").symlink_to(whole / "checkpoint-2")
    rewarded_by_length(monkeypatch)
    train(config_of(data, tmp_path, load_path="last"), rewarded_by_length.scorer)
    for name in ("reward", "loss", "completions/mean_length"):
        assert logged(tmp_path, name) == pytest.approx(logged(whole, name), abs=1e-4), name


def test_adapters_near_the_model_that_it_was_go_on_where_they_stopped_and_are_merged(data, tmp_path, monkeypatch):
    rewarded_by_length(monkeypatch)

    def scorer(items):
        return [[len(texts[0]) / 10, 3.0] for _, _, texts in items]

    keys = {
        "model.lora_rank": 2, "model.train_vision_tower": False, "model.train_merger": False,
        "model.save_dtype": "float32", "policy.kl_coef": 0.1, "reward.default": "open_ended",
        "optimizer.learning_rate": 1e-2,
    }  # fmt: skip
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(config_of(data, whole, **keys), scorer)
    kl = logged(whole, "kl")
    assert kl[0] == pytest.approx(0, abs=1e-6), "as it was, before the first step"
    assert kl[2] > 1e-6
    assert (whole / "checkpoint-2/adapter_model.safetensors").is_file()
    assert not (whole / "final/adapter_model.safetensors").exists()
    before, after = (
        load_file(path / "model.safetensors") for path in (Path(locate("assets/nano/base")), whole / "final")
    )
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name].float())}
    assert changed
    assert all("language_model" in name or name.startswith("model.layers") for name in changed), changed
    again.mkdir()
    (again / "checkpoint-2").symlink_to(whole / "checkpoint-2")
    train(config_of(data, again, load_path="last", **keys), scorer)
    for name in ("reward", "loss", "kl"):
        assert logged(again, name) == pytest.approx(logged(whole, name), abs=1e-4), name


def test_a_reward_that_cannot_be_had_is_left_out_and_counted(data, tmp_path, monkeypatch):
    rewarded_by_length(monkeypatch)

    def scorer(items):
        scores = rewarded_by_length.scorer(items)
        return [RecordError("image_too_large", "x") if k % 2 else one for k, one in enumerate(scores)]

    keys = {"reward.default": "open_ended", "run_duration": 1, "checkpoint.save_interval": 9}
    metrics = train(config_of(data, tmp_path, **keys), scorer)
    count = metrics["masked_no_score"]
    assert 2 <= count <= 4  # of 8, a group of boxes has no need of scores
    assert logged(tmp_path, "masked") == [count]
    assert metrics["last_reward"] > 0.3


@pytest.mark.parametrize("answer", [[JobError("gone")], [RecordError("no_score", "gone")]], ids=["server", "row"])
def test_a_step_without_rewards_ends_the_run_and_says_why(data, tmp_path, monkeypatch, answer):
    rewarded_by_length(monkeypatch)
    keys = {"reward.default": "open_ended", "reward.by_kind.grounding": "open_ended"}
    with pytest.raises(JobError, match=r"step 1: .*gone"):
        train(config_of(data, tmp_path, **keys), lambda items: answer * len(items))
    assert not (tmp_path / "metrics.json").exists()


def test_a_server_that_is_down_ends_the_program_after_bounded_tries(data, tmp_path, monkeypatch):
    rewarded_by_length(monkeypatch)
    keys = {"reward.default": "open_ended", "reward.tries": 2, "reward.server_url": "http://127.0.0.1:9"}
    with pytest.raises(JobError, match=r"step 1: rewards cannot be had: .*after 2 tries"):
        train_grpo.main(config_of(data, tmp_path, **keys, **{"reward.by_kind.grounding": "open_ended"}))


def test_what_cannot_be_trained_is_refused_before_a_model_is_loaded(data, tmp_path):
    with pytest.raises(JobError, match=r"'caption' have open_ended rewards: set reward\.server_url"):
        train(config_of(data, tmp_path))
    with pytest.raises(JobError, match=r"batch sizes: .*divisible"):
        train(config_of(data, tmp_path, **{"rollout.num_generations": 3}))


def test_the_script_teaches_the_format_serves_the_scorer_and_reinforces(tmp_path):
    """Unedited, at few steps, from a model whose responses are rewarded."""
    env = os.environ | {
        "START_PATH": locate("assets/nano/vlm-r1"),
        "COLD_SCENES": "16",
        "COLD_STEPS": "1",
        "SCENES": "20",
    }
    for name in ("MODEL_PATH", "DATA_PATH", "EVAL_PATH", "REWARD_URL", "REWARD_API_KEY", "SCORER_PATH", "OUTPUT_DIR"):
        env.pop(name, None)
    keys = ("run_duration=2", "device_train_batch_size=32", "rollout.num_generations=4", "evaluation.limit=7",
            "evaluation.before_training=false", "console_log_interval=1", "optimizer.learning_rate=1e-5")  # fmt: skip
    command = ["bash", ROOT / "script/train_grpo_small.sh", *keys]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "output/grpo"
    assert len(logged(out, "reward")) == 2
    assert min(logged(out, "reward")) > 0.3, "the format is kept"
    for kind in ("em", "iou", "open_ended"):
        assert logged(out, f"reward_{kind}"), kind
    assert (out / "final/model.safetensors").is_file()
    assert (out / "rewards.png").is_file()
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 7
    url = OmegaConf.load(out / "config.yaml").reward.server_url
    with pytest.raises(OSError, match="refused"):  # the server has ended with the script
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 5)
