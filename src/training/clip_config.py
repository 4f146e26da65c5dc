"""Every key of the CLIP trainer beside those of any run, and what trains by them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import MISSING
from peft import LoraConfig, get_peft_model
from transformers import CLIPModel

from src.errors import JobError
from src.training.run import RunConfig


@dataclass
class Model:
    model_name: str = MISSING
    attn_implementation: str = "sdpa"
    train_image_tower: bool = True
    train_text_tower: bool = True
    lora_rank: int = 0
    lora_alpha: int = 32
    save_dtype: str = "float32"


@dataclass
class Loss:
    local: bool = False
    chunk: int | None = None


@dataclass
class Data:
    csv_path: str | None = None
    image_path: str | None = None
    image_column: str = "filename"
    target_column: str = "title"
    subset: str | None = None
    filter_record: bool = False
    filter_column: str = "clip_score"
    save_top_percent: float = 0.3
    captions: str = "each"
    augment: bool = False
    val_data_path: str | None = None
    num_workers: int = 4
    cache_dir: str = "output/clip_cache"


@dataclass
class ClipConfig(RunConfig):
    run_name: str = "clip"
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    data: Data = field(default_factory=Data)


def make_trainable(model: CLIPModel, config: Model) -> Any:
    """Freeze the towers that the config does not name, and return the model, under LoRA if ``lora_rank`` > 0.

    A locked tower's projection still trains (Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text
    Tuning"). With LoRA the projections train in full, the named towers by adapters on all their linear layers, and the
    scale of the logits stays as it is.

    Raises:
        JobError: both towers are locked.
    """
    towers = {"vision_model": config.train_image_tower, "text_model": config.train_text_tower}
    if not any(towers.values()):
        raise JobError("nothing to train: set model.train_image_tower or model.train_text_tower")
    if config.lora_rank <= 0:
        for name, trains in towers.items():
            getattr(model, name).requires_grad_(trains)
        return model
    layers = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and towers.get(name.partition(".")[0])
    ]
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=layers,
        modules_to_save=["visual_projection", "text_projection"],
    )
    return get_peft_model(model, lora)
