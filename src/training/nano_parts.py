"""Every key of the embedded base model's training, and what they mean to Hugging Face's Trainer."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import MISSING
from transformers import TrainingArguments


@dataclass
class Data:
    train: str = MISSING
    val: str = MISSING
    scenes: int = 32000
    image_side: int = 112
    vocab_size: int = 3000


@dataclass
class Stage:
    steps: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    weight_decay: float = 0.05
    warmup_steps: int = 30
    real_share: float = 0.6


@dataclass
class ContrastiveStage(Stage):
    grounding_weight: float = 0.2


@dataclass
class MatchingStage(Stage):
    rejected: int = 7
    pooled_weight: float = 0.5
    text_weight: float = 1.0


@dataclass
class NanoConfig:
    data: Data = field(default_factory=Data)
    grounding: Stage = field(default_factory=Stage)
    contrastive: ContrastiveStage = field(default_factory=ContrastiveStage)
    matching: MatchingStage = field(default_factory=MatchingStage)
    start: str = ""
    resume: bool = False
    output_dir: str = "output/nano_base"
    bf16: bool = True
    seed: int = 322


def part_arguments(config: NanoConfig, stage: Stage, folder: Path) -> TrainingArguments:
    """Return the arguments of one part; only the last one, ``matching``, is evaluated on the way."""
    return TrainingArguments(
        str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=stage.learning_rate,
        weight_decay=stage.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=stage.warmup_steps,
        adam_beta2=0.98,
        bf16=config.bf16,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps" if folder.name == "matching" else "no",
        eval_steps=max(1, stage.steps // 5),
        logging_steps=10,
        save_strategy="steps",
        save_steps=200,
        save_total_limit=1,
        dataloader_num_workers=1,
        remove_unused_columns=False,
        report_to=["tensorboard"],
        seed=config.seed,
    )
