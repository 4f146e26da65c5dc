"""Every key of the reward trainer, and what they mean to Hugging Face's Trainer, PEFT and the model."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

from src.errors import JobError
from src.model.qwen_reward import Qwen2Reward


@dataclass
class Model:
    base_model_path: str = MISSING
    reward_model_ckpt_path: str | None = None
    ranked_candidate_num: int = 2
    position_scheme: str = "auto"
    attn_implementation: str = "sdpa"
    train_value_head: bool = True
    train_text_model: bool = False
    train_vision_model: bool = False
    lora_rank: int = 0
    lora_alpha: int = 32
    dtype: str = "float32"
    save_dtype: str = "bfloat16"


@dataclass
class Data:
    target_root: str = MISSING
    image_root: str | None = None
    eval_target_root: str | None = None
    eval_image_root: str | None = None
    eval_share: float = 0.02
    max_pixel_base: int = 1280
    max_tokens: int = 8192
    num_workers: int = 4
    cache_dir: str = "output/preference_cache"
    source_weights: dict[str, float] = field(default_factory=dict)


@dataclass
class LossKeys:
    kind: str = "pairwise"
    margin: float = 0.0
    centring_weight: float = 0.0
    pooled_weight: float = 0.0
    text_weight: float = 0.0


@dataclass
class Optimizer:
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])


@dataclass
class Scheduler:
    t_warmup: int = 0
    t_min: float = 0.0


@dataclass
class Checkpoint:
    save_strategy: str = "epoch"
    save_interval: int = 1000
    save_num_checkpoints_to_keep: int = 2


@dataclass
class Wandb:
    enabled: bool = False
    mode: str = "offline"
    project: str = "scorers"
    group: str | None = None
    name: str | None = None


@dataclass
class RewardConfig:
    run_name: str = "reward"
    seed: int = 322
    run_strategy: str = "epoch"
    run_duration: int = 1
    save_folder: str = MISSING
    save_overwrite: bool = False
    load_path: str | None = None
    device_train_batch_size: int = 8
    device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    precision: str = "bf16"
    activation_checkpointing: bool = False
    console_log_interval: int = 10
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    wandb: Wandb = field(default_factory=Wandb)
    loss: LossKeys = field(default_factory=LossKeys)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)


def training_arguments(config: RewardConfig, evaluates: bool) -> TrainingArguments:
    """Return the arguments for :class:`transformers.Trainer`; on a machine without a GPU it trains on the CPU.

    Raises:
        JobError: a key whose value is not one of those it can have.
    """
    _one_of("run_strategy", config.run_strategy, "epoch", "step")
    _one_of("checkpoint.save_strategy", config.checkpoint.save_strategy, "epoch", "step")
    _one_of("precision", config.precision, "bf16", "fp16", "fp32")
    # Trainer would let a launch file's mixed_precision stand where neither bf16 nor fp16 is asked for.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no" if config.precision == "fp32" else config.precision
    keep, by_step = config.checkpoint.save_num_checkpoints_to_keep, config.checkpoint.save_strategy == "step"
    when: Any = "steps" if by_step else "epoch"
    beta1, beta2 = config.optimizer.betas
    return TrainingArguments(
        output_dir=config.save_folder,
        run_name=config.wandb.name or config.run_name,
        seed=config.seed,
        num_train_epochs=config.run_duration if config.run_strategy == "epoch" else 1,
        max_steps=config.run_duration if config.run_strategy == "step" else -1,
        per_device_train_batch_size=config.device_train_batch_size,
        per_device_eval_batch_size=config.device_eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        gradient_checkpointing=config.activation_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        learning_rate=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        adam_beta1=beta1,
        adam_beta2=beta2,
        lr_scheduler_type="cosine_with_min_lr",
        # As a rate: DeepSpeed's optimizers do not have the defaults that the absolute form looks up.
        lr_scheduler_kwargs={"min_lr_rate": config.scheduler.t_min / config.optimizer.learning_rate},
        warmup_steps=config.scheduler.t_warmup,
        logging_steps=config.console_log_interval,
        save_strategy=when,
        save_steps=config.checkpoint.save_interval,
        save_total_limit=keep if keep > 0 else None,
        eval_strategy=when if evaluates else "no",
        eval_steps=config.checkpoint.save_interval,
        load_best_model_at_end=evaluates,
        metric_for_best_model="eval_accuracy" if evaluates else None,
        dataloader_num_workers=config.data.num_workers,
        remove_unused_columns=False,
        report_to=["tensorboard", *(["wandb"] if config.wandb.enabled else [])],
        # accelerate reads its own settings of FSDP on GPUs alone; named here, processes on CPUs follow them too.
        fsdp=True if _wants_fsdp() else None,  # type: ignore[arg-type]
    )


def make_trainable(model: Qwen2Reward, config: Model) -> Any:
    """Freeze all but the parts that the config names, and return the model, under LoRA if ``lora_rank`` > 0.

    With LoRA the reward head trains in full, the named parts by adapters on all their linear layers.

    Raises:
        JobError: nothing is left to train.
    """
    if not (config.train_value_head or config.train_text_model or config.train_vision_model):
        raise JobError("nothing to train: set one of model.train_value_head, train_text_model, train_vision_model")
    parts = {"language_model": config.train_text_model, "visual": config.train_vision_model}
    if config.lora_rank <= 0:
        for name, trains in parts.items():
            getattr(model.model, name).requires_grad_(trains)
        model.reward_head.requires_grad_(config.train_value_head)
        return model
    named = "|".join(re.escape(name) for name, trains in parts.items() if trains)
    if not named:
        raise JobError("model.lora_rank needs model.train_text_model or model.train_vision_model")
    layers = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and re.match(rf"model\.({named})\.", name)
    ]
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=layers,
        modules_to_save=["reward_head"] if config.train_value_head else None,
    )
    return get_peft_model(model, lora)


def resume_point(config: RewardConfig) -> str | None:
    """The checkpoint to go on from: ``load_path``, or with ``load_path=last`` the newest whole one in ``save_folder``.

    Raises:
        JobError: no such checkpoint; or ``save_folder`` holds a finished or begun run and neither ``load_path`` nor
            ``save_overwrite`` is set.
    """
    folder = Path(config.save_folder)
    if config.load_path == "last":
        # The state is written last: a folder without it is what a killed process left half done.
        done = [found.parent for found in folder.glob("checkpoint-*/trainer_state.json")]
        return str(max(done, key=lambda one: int(one.name.rpartition("-")[2]))) if done else None
    if config.load_path:
        if not Path(config.load_path, "trainer_state.json").is_file():
            raise JobError(f"load_path: {config.load_path} is no checkpoint of a training")
        return config.load_path
    if (folder / "config.yaml").exists() and not config.save_overwrite:
        raise JobError(f"{folder} holds a run already: go on with load_path=last, or set save_overwrite=true")
    return None


def _wants_fsdp() -> bool:
    """Whether ``accelerate launch`` was told to use FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def _one_of(key: str, value: str, *options: str) -> None:
    if value not in options:
        raise JobError(f"{key} is {value!r}; use one of {', '.join(options)}")
