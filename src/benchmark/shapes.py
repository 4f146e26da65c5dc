"""Qwen2-VL at its true sizes with random weights: pairs a second on a GPU, and how much of its arithmetic is used."""

import argparse
from typing import Any

import torch
from transformers import AutoProcessor, Qwen2VLConfig

from src.benchmark.measure import QUESTION
from src.benchmark.pairs import compare
from src.curation.scorer import NANO, Scorer
from src.dataset.collate import PairEncoder
from src.errors import JobError
from src.model.checkpoint import locate, usable_attention
from src.model.qwen_reward import Qwen2Reward

_VISION = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4}
_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
# (text tower, vision tower), as in the checkpoints' own config.json
SHAPES = {
    "2b": (
        {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
         "num_key_value_heads": 2, "vocab_size": 151936, "rope_parameters": _ROPE},
        {**_VISION, "hidden_size": 1536},
    ),
    "7b": (
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152064, "rope_parameters": _ROPE},
        {**_VISION, "hidden_size": 3584},
    ),
}  # fmt: skip
# Dense bfloat16 operations a second by their makers' data sheets, by a part of the device's name.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
TOKEN_BUDGET = 32768


def shape(args: argparse.Namespace) -> float:
    """Pairs of an image each: print speed and utilisation of both ways, return how many times as fast the scorer is.

    Raises:
        JobError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise JobError(
            f"--shape {args.shape} needs a GPU: the model has billions of weights, and torch finds no device"
        )
    scorer = random_scorer(*SHAPES[args.shape], "cuda", torch.bfloat16, args.side)
    name = torch.cuda.get_device_name()
    print(f"{args.answers} pairs of one {args.side}-px image and {args.words} words, Qwen2-VL-{args.shape}, {name}")
    peak = next((flops for part, flops in PEAKS.items() if part in name), None)
    return compare(
        scorer, args, args.answers, 1, QUESTION, used=lambda rate: utilisation(scorer, args.side, rate, peak)
    )


def utilisation(scorer: Scorer, side: int, rate: float, peak: float | None) -> str:
    """Model operations a second at so many pairs a second, and their share of the device's ``peak``."""
    patches = (side // 14) ** 2
    # Image tokens make all but some dozens of a pair's tokens; 64 stand for the template and the text.
    flops = pair_flops(scorer.model.config, patches // 4 + 64, patches) * rate
    return f"  {flops / 1e12:8.2f} TFLOP/s" + (f", {flops / peak:.1%} of the peak" if peak else "")


def pair_flops(config: Qwen2VLConfig, tokens: int, patches: int) -> float:
    """Multiplications and additions of one pair alone in one forward pass: all matrix products, attention in full.

    Args:
        tokens: of the chat text, image tokens included.
        patches: of its one image; four make an image token.
    """
    return vision_flops(config, patches) + text_flops(config, tokens, tokens) + head_flops(config)


def vision_flops(config: Qwen2VLConfig, patches: int) -> float:
    """The part of :func:`pair_flops` that encodes an image."""
    vision: Any = config.vision_config
    width, merged = vision.embed_dim, vision.embed_dim * vision.spatial_merge_size**2
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    block = 2 * width * width * (4 + 2 * vision.mlp_ratio) + 4 * patches * width
    merger = 2 * merged * (merged + vision.hidden_size) / vision.spatial_merge_size**2
    return patches * (2 * pixels * width + vision.depth * block + merger)


def text_flops(config: Qwen2VLConfig, tokens: int, seen: int) -> float:
    """The part of :func:`pair_flops` in the language model's layers, for ``tokens`` tokens that attend to ``seen``."""
    text = config.get_text_config()
    hidden, head = text.hidden_size, text.hidden_size // text.num_attention_heads
    projections = 2 * hidden * (2 * hidden + 2 * text.num_key_value_heads * head)
    layer = projections + 2 * 3 * hidden * text.intermediate_size + 4 * seen * hidden
    return tokens * text.num_hidden_layers * layer


def head_flops(config: Qwen2VLConfig) -> float:
    """The part of :func:`pair_flops` from the last layer to the score."""
    return 2 * config.get_text_config().hidden_size


def random_scorer(text: dict[str, Any], vision: dict[str, Any], device: str, dtype: torch.dtype, side: int) -> Scorer:
    """A scorer of random weights in the shape of two towers, with the embedded model's processor for ``side`` px."""
    path = locate(NANO)
    like = Qwen2VLConfig.from_pretrained(path).to_dict()
    like["text_config"] |= {"layer_types": None, **text}
    like["vision_config"] |= vision
    config = Qwen2VLConfig(**like)
    attention = usable_attention(None, device != "cpu", dtype != torch.float32)
    with torch.device(device):
        model = Qwen2Reward._from_config(config, dtype=dtype, attn_implementation=attention)
    processor = AutoProcessor.from_pretrained(path)
    size = processor.image_processor.size
    processor.image_processor.size = type(size)(shortest_edge=size.shortest_edge, longest_edge=side**2)
    return Scorer(model, PairEncoder(processor), TOKEN_BUDGET)
