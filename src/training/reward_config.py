"""Every key of the reward trainer beside those of any run, and what trains by them."""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import MISSING
from peft import LoraConfig, get_peft_model

from src.errors import JobError
from src.model.qwen_reward import Qwen2Reward
from src.training.run import RunConfig


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
class RewardConfig(RunConfig):
    run_name: str = "reward"
    loss: LossKeys = field(default_factory=LossKeys)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)


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
