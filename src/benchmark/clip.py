"""A training step of CLIP, beside the plain loop over ``CLIPModel(return_loss=True)``, as published."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.benchmark.measure import jpeg, noise, ratio, sentences
from src.dataset.images import open_image
from src.model.clip import TransformersClip, load_clip
from src.training.clip import encode
from src.training.clip_data import ClipCollator
from src.training.clip_loss import global_loss


def step(args: argparse.Namespace) -> float:
    """Print both medians and return how many times as many steps a second our way takes, decoding included.

    With one caption an image the work is the same; with several, an image that pairs share is decoded and encoded once,
    and its captions are no negatives of each other. Without shared images the losses must agree.

    Raises:
        SystemExit: they do not.
    """
    clip = load_clip(args.clip, dtype=torch.float32)
    assert isinstance(clip, TransformersClip)
    model, processor, rng = clip.model.train(), clip.processor, np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    images = [jpeg(noise(rng, args.side)) for _ in range(args.batch // args.captions)]
    texts = sentences(rng, len(images) * args.captions, args.words)
    pairs = [
        {"image": images[k // args.captions], "text": text, "key": str(k // args.captions), "view": [k]}
        for k, text in enumerate(texts)
    ]
    collate = ClipCollator(processor, model.config.text_config.max_position_embeddings)

    def ours() -> Tensor:
        inputs = {name: value.to(clip.device) for name, value in collate(pairs).items()}
        image, text = encode(model, inputs)
        return global_loss(image, text, model.logit_scale.exp(), inputs["groups"])

    def plain() -> Tensor:
        return plain_loss(model, processor, pairs)

    difference = abs(ours().item() - plain().item())
    if args.captions == 1 and difference > 1e-4:
        raise SystemExit(f"losses differ by {difference:.2g}")

    def train(loss_of: Callable[[], Tensor]) -> None:
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()

    print(f"a step of {len(pairs)} pairs, {args.captions} an image, median of {args.repeats} runs")
    ways = {"ours": lambda: train(ours), "plain loop": lambda: train(plain)}
    return ratio(ways, args.repeats, len(pairs))


def plain_loss(model: Any, processor: Any, pairs: Sequence[Mapping[str, Any]]) -> Tensor:
    """The loss of transformers, every pair with an image of its own."""
    opened = [open_image(pair["image"]) for pair in pairs]
    texts = [pair["text"] for pair in pairs]
    inputs = processor(text=texts, images=opened, padding=True, truncation=True, return_tensors="pt")
    return model(**inputs.to(model.device), return_loss=True).loss
