"""Every key of the trainer of Qwen2-VL beside those of any run, and what trains by them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import MISSING
from peft import LoraConfig, get_peft_model
from transformers import Qwen2VLForConditionalGeneration

from src.errors import JobError
from src.training.run import RunConfig


@dataclass
class Model:
    model_name: str = MISSING
    attn_implementation: str = "flash_attention_2"
    train_language_model: bool = False
    train_merger: bool = False
    train_vision_tower: bool = False
    lora_rank: int = 0
    lora_alpha: int = 8
    dtype: str = "bfloat16"
    save_dtype: str = "bfloat16"


@dataclass
class Data:
    path: str | None = None
    image_root: str | None = None
    image_column: str = "filename"
    text_column: str = "title"
    question_column: str | None = None
    kind_column: str | None = None
    question: str = "Describe the image."
    subset: str | None = None
    eval_path: str | None = None
    eval_image_root: str | None = None
    max_pixels: int = 1024
    cutoff_len: int = 8192
    num_workers: int = 8
    cache_dir: str = "output/vlm_cache"


@dataclass
class Answering:
    before_training: bool = False
    max_new_tokens: int = 64
    limit: int | None = None


@dataclass
class Evaluation(Answering):
    best_by: str = "accuracy"


@dataclass
class VlmConfig(RunConfig):
    run_name: str = "vlm"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    evaluation: Evaluation = field(default_factory=Evaluation)


def make_trainable(model: Qwen2VLForConditionalGeneration, config: Model) -> Any:
    """Freeze all but the parts that the config names, and return the model, under LoRA if ``lora_rank`` > 0.

    The vision tower is without its merger, the language model with its word embeddings. With LoRA the language model
    and the vision tower train by adapters on all their linear layers, and the merger, if named, in full.

    Raises:
        JobError: nothing is left to train, or adapters with nothing to adapt.
    """
    language, merger, vision = config.train_language_model, config.train_merger, config.train_vision_tower
    if not (language or merger or vision):
        raise JobError(
            "nothing to train: set one of model.train_language_model, model.train_merger, model.train_vision_tower"
        )
    if config.lora_rank <= 0:
        model.model.language_model.requires_grad_(language)
        model.lm_head.requires_grad_(language)  # the word embeddings themselves where these are tied
        model.model.visual.requires_grad_(vision)
        model.model.visual.merger.requires_grad_(merger)
        return model
    if not (language or vision):
        raise JobError("model.lora_rank needs model.train_language_model or model.train_vision_tower; it is 0 without")
    parts = {"model.language_model.": language, "model.visual.blocks.": vision}
    layers = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and any(name.startswith(part) for part, trains in parts.items() if trains)
    ]
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=layers,
        modules_to_save=["visual.merger"] if merger else None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora, autocast_adapter_dtype=False)


def trained_parts(model: torch.nn.Module) -> str:
    """How many weights train of how many, by part, in words."""
    counts = {"vision tower": [0, 0], "merger": [0, 0], "language model": [0, 0]}
    for name, weight in model.named_parameters():
        part = "merger" if ".merger." in name else "vision tower" if ".visual." in name else "language model"
        size = getattr(weight, "ds_numel", weight.numel())  # ZeRO-3 holds a share of each
        counts[part][0] += size * weight.requires_grad
        counts[part][1] += size
    return ", ".join(f"{part} {trained:,} of {total:,}" for part, (trained, total) in counts.items()) + " weights train"
