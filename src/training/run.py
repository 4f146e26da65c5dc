"""What all trainers share: the keys of a run, what they mean to Hugging Face's Trainer, and where to go on from."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from omegaconf import MISSING
from transformers import Trainer, TrainingArguments

from src.errors import JobError


@dataclass
class Optimizer:
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])


@dataclass
class Scheduler:
    t_warmup: float = 0
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
class RunConfig:
    """What every trainer is told: how long, how large a batch, how to save, what to log."""

    run_name: str = "run"
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


def training_arguments(
    config: RunConfig,
    best_by: str | None,
    kind: type[TrainingArguments] = TrainingArguments,
    **more: Any,
) -> Any:
    """Return the arguments for :class:`transformers.Trainer`; on a machine without a GPU it trains on the CPU.

    Args:
        best_by: the metric that decides which checkpoint is the best; None: no evaluation.
        kind: the class of arguments that a trainer of its own wants.
        more: further arguments of that class.

    Raises:
        JobError: a key whose value is not one of those it can have.
    """
    one_of("run_strategy", config.run_strategy, "epoch", "step")
    one_of("checkpoint.save_strategy", config.checkpoint.save_strategy, "epoch", "step")
    one_of("precision", config.precision, "bf16", "fp16", "fp32")
    # Trainer would let a launch file's mixed_precision stand where neither bf16 nor fp16 is asked for.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no" if config.precision == "fp32" else config.precision
    keep, by_step = config.checkpoint.save_num_checkpoints_to_keep, config.checkpoint.save_strategy == "step"
    when: Any = "steps" if by_step else "epoch"
    beta1, beta2 = config.optimizer.betas
    return kind(
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
        eval_strategy=when if best_by else "no",
        eval_steps=config.checkpoint.save_interval,
        load_best_model_at_end=best_by is not None,
        metric_for_best_model=best_by,
        remove_unused_columns=False,
        ddp_timeout=24 * 3600,  # others wait while the main process checks data, or measures
        report_to=["tensorboard", *(["wandb"] if config.wandb.enabled else [])],
        # accelerate reads its own settings of FSDP on GPUs alone; named here, processes on CPUs follow them too.
        fsdp=True if _wants_fsdp() else None,  # type: ignore[arg-type]
        **more,
    )


def resume_point(config: RunConfig) -> str | None:
    """The checkpoint to go on from: ``load_path``, or with ``load_path=last`` the newest whole one in ``save_folder``.

    Raises:
        JobError: no such checkpoint; or ``save_folder`` holds a finished or begun run and neither ``load_path`` nor
            ``save_overwrite`` is set.
    """
    folder = Path(config.save_folder)
    if config.load_path == "last":
        return last_checkpoint(folder)
    if config.load_path:
        if not Path(config.load_path, "trainer_state.json").is_file():
            raise JobError(f"load_path: {config.load_path} is no checkpoint of a training")
        return config.load_path
    if (folder / "config.yaml").exists() and not config.save_overwrite:
        raise JobError(f"{folder} holds a run already: go on with load_path=last, or set save_overwrite=true")
    return None


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint in a folder."""
    # The state is written last: a folder without it is what a killed process left half done.
    done = [found.parent for found in folder.glob("checkpoint-*/trainer_state.json")]
    # The newest, not the one of the highest number: save_overwrite may have left those of an earlier run.
    age = {one: ((one / "trainer_state.json").stat().st_mtime_ns, int(one.name.rpartition("-")[2])) for one in done}
    return str(max(done, key=age.__getitem__)) if done else None


def set_up_wandb(config: RunConfig) -> None:
    """Tell wandb, where it is used, by its environment what the configuration says; what is set there stands."""
    if not config.wandb.enabled:
        return
    os.environ.setdefault("WANDB_MODE", config.wandb.mode)
    os.environ.setdefault("WANDB_PROJECT", config.wandb.project)
    os.environ.setdefault("WANDB_DIR", config.save_folder)
    if config.wandb.group:
        os.environ.setdefault("WANDB_RUN_GROUP", config.wandb.group)


def write_outcome(trainer: Trainer, folder: Path, metrics: Mapping[str, float]) -> None:
    """Write ``history.json`` (all log lines) and, last, ``metrics.json`` on the main process; say where.

    A run that has ``metrics.json`` is finished. All processes must call it, last of all, and their group ends with it.
    """
    if trainer.is_world_process_zero():
        (folder / "history.json").write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")
        partial = folder / "metrics.partial"
        partial.write_text(json.dumps(metrics, indent=2), encoding="utf-8")
        partial.replace(folder / "metrics.json")
        print(json.dumps(metrics, indent=2))
        print(f"model: {folder / 'final'}")
    # A process that ends before the threads of its group do is aborted now and then, after all its work is done.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


class ShardedTrainer(Trainer):
    """Trainer that follows a launch file with FSDP2 on CPUs too."""

    def create_accelerator_and_postprocess(self) -> None:
        """Let FSDP2 run on CPUs, where torch has it (gloo) and accelerate offers it for accelerators alone."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.args.fsdp_plugin_args is not None and state.distributed_type == DistributedType.MULTI_CPU:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            # A later AcceleratorState() takes the type over from PartialState.
            state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True


def _wants_fsdp() -> bool:
    """Whether ``accelerate launch`` was told to use FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def one_of(key: str, value: str, *options: str) -> None:
    """Raise JobError unless the value of a key is one of its options."""
    if value not in options:
        raise JobError(f"{key} is {value!r}; use one of {', '.join(options)}")
