"""Fine-tuning Qwen2-VL: what trains, the loss of a step however it is divided, merged adapters, whole runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration
from trl import SFTConfig

from python_script import train_vlm
from src.dataset.collate import PairEncoder
from src.dataset.instructions import in_turns, scene_conversations, write_instructions
from src.dataset.scenes import scene_seeds
from src.errors import JobError
from src.model.checkpoint import locate
from src.training.run import training_arguments
from src.training.vlm import VlmTrainer, accuracies, judge
from src.training.vlm_config import Data, Evaluation, Model, VlmConfig, make_trainable
from src.training.vlm_data import ConversationCollator, load_conversations
from tests.training.launches import launch_file, run_here

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "config/sft_finetuning.yaml"
BASE = locate("assets/nano/base")
KINDS = ("yes_no", "scene", "grounding")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """80 conversations about 40 scenes in ``train.jsonl`` and a bad record; in ``held_out.jsonl`` 9 about others."""
    folder = tmp_path_factory.mktemp("scenes")
    chats = in_turns(scene_conversations(scene_seeds(1, 40), KINDS, 3, 56), 2)
    write_instructions(chats, folder / "train.jsonl")
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"images": ["gone.png"], "messages": [{"from": "gpt", "value": "x"}]}) + "\n")
    write_instructions(scene_conversations(scene_seeds(2, 9), KINDS, 1, 56), folder / "held_out.jsonl")
    return folder


def base() -> Qwen2VLForConditionalGeneration:
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32)


def trained(keys: dict) -> set[str]:
    """Which parts have weights that train, by the first words of their names."""
    model = make_trainable(base(), Model(**keys))
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    parts = {"merger" if "merger" in n else "vision" if "visual" in n else "language" for n in names}
    kinds = {"adapter" if "lora_" in n else "whole" for n in names}
    return parts | kinds


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"train_merger": True}, {"merger", "whole"}),
        ({"train_language_model": True, "lora_rank": 8}, {"language", "adapter"}),
        ({"train_language_model": True, "lora_rank": 8, "train_merger": True},
         {"language", "merger", "adapter", "whole"}),
        ({"train_vision_tower": True, "lora_rank": 8}, {"vision", "adapter"}),
        ({"train_language_model": True}, {"language", "whole"}),
        ({"train_vision_tower": True}, {"vision", "whole"}),
        ({"train_vision_tower": True, "train_merger": True, "train_language_model": True},
         {"vision", "merger", "language", "whole"}),
    ],
    ids=lambda value: "+".join(sorted(value)),
)  # fmt: skip
def test_what_trains_is_what_was_asked_for(keys, wanted):
    assert trained(keys) == wanted


def test_adapters_are_on_all_linear_layers_of_the_language_model_and_nothing_trains_by_mistake():
    model = make_trainable(base(), Model(train_language_model=True, lora_rank=8))
    adapted = {name.rpartition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert len(adapted) == 4 * 7  # q, k, v, o, gate, up, down of each layer; no head, no vision tower
    assert model.peft_config["default"].r == 8
    for keys in ({}, {"lora_rank": 8, "train_merger": True}):
        with pytest.raises(JobError, match="train"):
            make_trainable(base(), Model(**keys))


def trainer(scenes: Path, folder: Path, model, **keys) -> VlmTrainer:
    config = VlmConfig(save_folder=str(folder), precision="fp32", run_strategy="step", run_duration=1, **keys)
    arguments = training_arguments(
        config, None, SFTConfig, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None
    )
    data = Data(path=str(scenes / "train.jsonl"), kind_column="kind", cache_dir=str(scenes / "cache"), num_workers=1)
    found, encoder = load_conversations(data, PairEncoder(AutoProcessor.from_pretrained(BASE)))
    return VlmTrainer(model, arguments, ConversationCollator(found, encoder), None, Evaluation())


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_the_loss_of_a_step_is_the_mean_over_its_tokens_however_it_is_divided(scenes, tmp_path):
    """Micro-batches of unequal numbers of answer tokens against one batch, and against the plain definition."""
    model = make_trainable(base(), Model(train_merger=True))
    one = trainer(scenes, tmp_path, model)
    samples = [one.train_dataset[k] for k in (0, 1, 2, 3)]
    one.current_gradient_accumulation_steps = 1
    found = []
    for parts in ([samples], [samples[:1], samples[1:]]):
        batches = [one.data_collator(part) for part in parts]
        total = one._get_num_items_in_batch(batches, torch.device("cpu"))
        one.current_gradient_accumulation_steps = len(batches)
        model.zero_grad()
        losses = [one.training_step(model, dict(batch), total) for batch in batches]
        found.append((sum(losses), gradients(model)))
    assert {name.split(".")[2] for name in found[0][1]} == {"merger"}
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-3)
    with torch.no_grad():
        sums, tokens = 0.0, 0
        for sample in samples:
            batch = one.data_collator([sample])
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch, use_cache=False).logits[:, :-1].transpose(1, 2)
            sums += torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            tokens += (labels != -100).sum()
    torch.testing.assert_close(found[0][0], sums / tokens, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("merger", [False, True])
def test_merged_adapters_compute_what_they_did_apart(scenes, tmp_path, merger):
    adapted = make_trainable(base(), Model(train_language_model=True, lora_rank=8, train_merger=merger))
    one = trainer(scenes, tmp_path, adapted)
    with torch.no_grad():
        for weight in filter(lambda weight: weight.requires_grad, adapted.parameters()):
            weight.add_(0.05 * torch.randn_like(weight))
    batch = one.data_collator([one.train_dataset[k] for k in range(3)])
    batch.pop("labels")
    with torch.no_grad():
        before, plain = adapted.eval()(**batch, use_cache=False).logits, base()(**batch, use_cache=False).logits
    one.save_final(tmp_path / "final", torch.float32)
    merged = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "final", dtype=torch.float32)
    with torch.no_grad():
        after = merged(**batch, use_cache=False).logits
        assert torch.equal(adapted(**batch, use_cache=False).logits, before)  # the model in training is left alone
    assert (before - plain).abs().max() > 0.1
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    assert not (tmp_path / "final" / "adapter_config.json").exists()
    assert merged.config.tie_word_embeddings
    assert merged.lm_head.weight is merged.get_input_embeddings().weight
    assert AutoProcessor.from_pretrained(tmp_path / "final").chat_template == one.processing_class.chat_template


def test_checkpoints_are_read_back(scenes, tmp_path):
    """Under the names of published checkpoints, the weights of the model would be left as they are."""
    one = trainer(scenes, tmp_path, make_trainable(base(), Model(train_merger=True)))
    one.save_model(str(tmp_path / "checkpoint"))
    wanted = {name: weight.clone() for name, weight in one.model.state_dict().items()}
    with torch.no_grad():
        for weight in one.model.parameters():
            weight.zero_()
    one._load_from_checkpoint(str(tmp_path / "checkpoint"))
    assert all(torch.equal(weight, wanted[name]) for name, weight in one.model.state_dict().items())


def test_accuracy_is_over_all_records_and_by_kind():
    box, other = "<|box_start|>(0,0),(10,10)<|box_end|>", "<|box_start|>(50,50),(90,90)<|box_end|>"
    told = [
        ("yes_no", "Yes.", ["yes"]), ("yes_no", "", ["no"]), ("grounding", other, [box + other]),
        ("grounding", "none", [box]), ("caption", "A lake", ["fields .", "a lake ."]),
    ]  # fmt: skip
    metrics = accuracies([{"kind": kind, **judge(said, true)} for kind, said, true in told])
    assert metrics == pytest.approx(
        {
            "accuracy": (1 + 0 + 0.5 + 0 + 1) / 5, "accuracy_caption": 1, "accuracy_grounding": 0.25,
            "precision_grounding": 1 / 3, "accuracy_yes_no": 0.5,
        }
    )  # fmt: skip


def command(scenes: Path, out: Path, launcher: list[str], keys: dict[str, object]) -> list[str]:
    settings = {
        "model.model_name": BASE, "data.path": scenes / "train.jsonl", "data.kind_column": "kind",
        "save_folder": out, "data.cache_dir": scenes / "cache", "data.num_workers": 0, "precision": "fp32",
        "model.dtype": "float32", "save_overwrite": "true", "console_log_interval": 1, "run_strategy": "step",
        "run_duration": 6, "checkpoint.save_strategy": "step", "checkpoint.save_interval": 3, "scheduler.t_warmup": 1,
        "device_train_batch_size": 8, "activation_checkpointing": "false", "optimizer.learning_rate": 2e-3, **keys,
    }  # fmt: skip
    arguments = [f"{key}={value}" for key, value in settings.items()]
    return [*launcher, "python_script/train_vlm.py", CONFIG, *arguments]


def run(line: list[str], **environment: object) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in environment.items()}}
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def logged(out: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((out / "history.json").read_text()) if "loss" in entry]


TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def one(scenes, tmp_path_factory) -> Path:
    """A run of adapters and merger in one process, with evaluation."""
    out = tmp_path_factory.mktemp("one") / "run"
    keys = {"data.eval_path": scenes / "held_out.jsonl", "evaluation.max_new_tokens": 12, "model.train_merger": "true"}
    printed = run_here(train_vlm.main, VlmConfig, CONFIG, command(scenes, out, [], keys)[2:])
    assert "81 records = 80 usable with 80 conversations + 1 errors (bad_record 1" in printed
    assert "vision tower 0 of" in printed
    return out


@pytest.mark.slow
def test_a_run_learns_tells_held_out_answers_and_its_model_loads(one):
    losses = logged(one)
    assert losses[-1] < losses[0] - 1
    metrics = json.loads((one / "metrics.json").read_text())
    assert {"eval_loss", "eval_accuracy", "eval_accuracy_scene", "eval_precision_grounding"} <= set(metrics)
    told = [json.loads(line) for line in (one / "predictions.jsonl").read_text().splitlines()]
    assert len(told) == 9
    assert sum(record["correct"] for record in told) / 9 == pytest.approx(metrics["eval_accuracy"])
    Qwen2VLForConditionalGeneration.from_pretrained(one / "final")


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(scenes, one, tmp_path):
    out = tmp_path / "resumed"
    out.mkdir()
    (out / "checkpoint-3").symlink_to(one / "checkpoint-3")
    keys = {"load_path": "last", "model.train_merger": "true"}
    run_here(train_vlm.main, VlmConfig, CONFIG, command(scenes, out, [], keys)[2:])
    assert logged(out) == pytest.approx(logged(one), abs=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_losses_and_the_held_out_figures_of_one(scenes, one, tmp_path):
    keys = {"data.eval_path": scenes / "held_out.jsonl", "evaluation.max_new_tokens": 12, "model.train_merger": "true"}
    done = run(command(scenes, tmp_path / "two", TWO, {**keys, "device_train_batch_size": 4}))
    assert "2 processes" in done.stdout
    assert logged(tmp_path / "two") == pytest.approx(logged(one), abs=1e-4)
    figures = [json.loads((out / "metrics.json").read_text()) for out in (one, tmp_path / "two")]
    assert figures[1]["eval_loss"] == pytest.approx(figures[0]["eval_loss"], abs=1e-4)
    assert figures[1]["eval_accuracy"] == pytest.approx(figures[0]["eval_accuracy"], abs=0.12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_launch_files(scenes, one, tmp_path, name):
    """As ``accelerate launch`` starts its processes, but two of them on CPUs."""
    keys = {"device_train_batch_size": 4, "model.train_merger": "true", "checkpoint.save_interval": 6,
            "data.eval_path": scenes / "held_out.jsonl", "evaluation.limit": 2,
            "evaluation.max_new_tokens": 2}  # fmt: skip
    told = launch_file(name)
    run(command(scenes, tmp_path / name, TWO, keys), **told)
    assert logged(tmp_path / name) == pytest.approx(logged(one), abs=2e-3)
    merged = [
        Qwen2VLForConditionalGeneration.from_pretrained(out / "final").state_dict() for out in (one, tmp_path / name)
    ]
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(merged[0][name], merged[1][name], atol=2e-2, rtol=0)
    assert not torch.equal(merged[0][name], base().state_dict()[name].to(merged[0][name].dtype))


@pytest.mark.slow
def test_the_scripts_run_one_after_the_other_as_they_are(tmp_path):
    """From the embedded base model, on scenes that they make themselves; only fewer and smaller."""
    unset = (
        "MODEL_PATH",
        "DATA_PATH",
        "IMAGE_ROOT",
        "SUBSET",
        "EVAL_PATH",
        "OUTPUT_DIR",
        "CONFIG_PATH",
        "ACCELERATE_CONFIG",
    )
    env = {key: value for key, value in os.environ.items() if key not in unset}
    env |= {"SCENES": "64", "NUM_PROCESSES": "1", "OMP_NUM_THREADS": "1"}
    found = {}
    for stage in ("pretrain", "sft"):
        line = ["bash", str(ROOT / f"script/train_{stage}.sh"), "evaluation.limit=14", "evaluation.max_new_tokens=4"]
        done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found[stage] = json.loads((tmp_path / f"output/vlm_{stage}/metrics.json").read_text())
        merger = "merger 533,632 of 533,632" if stage == "pretrain" else "vision tower 1,734,560 of 1,734,560"
        assert merger in done.stdout
    assert found["sft"]["before_loss"] == pytest.approx(found["pretrain"]["eval_loss"], abs=0.01)
    assert found["sft"]["eval_loss"] < found["sft"]["before_loss"] - 1
