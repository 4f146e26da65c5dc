"""A training step on packed preference groups, beside the published form of it."""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch

from src.benchmark.measure import QUESTION, noise, ratio, sentences
from src.chat import pair_messages, render
from src.curation.scorer import Scorer
from src.model.ranking import pairwise_loss
from src.training.reward import PreferenceCollator


def published_step(scorer: Scorer, groups: Sequence[dict]) -> torch.Tensor:
    """Loss of one step in the published form: two whole conversations for each rejected answer of each group."""
    processor = scorer.encoder.processor
    rows = [(g["images"][0], text) for g in groups for wrong in g["rejected"] for text in (g["chosen"], wrong)]
    texts = [render(processor.tokenizer, pair_messages([image], text, QUESTION)) for image, text in rows]
    inputs = processor(text=texts, images=[image for image, _ in rows], padding=True, return_tensors="pt")
    return scorer.model(**inputs.to(scorer.model.device), return_loss=True).loss


def packed_step(scorer: Scorer, groups: Sequence[dict]) -> torch.Tensor:
    """The same loss over packed groups."""
    batch = {name: value.to(scorer.model.device) for name, value in PreferenceCollator(scorer.encoder)(groups).items()}
    del batch["weights"], batch["sources"]
    return pairwise_loss(scorer.model(**batch, return_loss=False).values.view(len(groups), -1)).mean()


def step(args: argparse.Namespace) -> float:
    """Print both medians and return how many times as fast packed groups train.

    Raises:
        SystemExit: gradients differ.
    """
    scorer = Scorer.from_pretrained(args.model, max_pixels=args.side**2)
    rng = np.random.default_rng(0)
    groups = []
    for _ in range(args.groups):
        chosen, *rejected = sentences(rng, 1 + args.rejected, args.words)
        groups.append({"images": [noise(rng, args.side)], "question": QUESTION, "chosen": chosen, "rejected": rejected})
    model = scorer.model.train()

    def gradients(step: Callable[[Scorer, Sequence[dict]], torch.Tensor]) -> torch.Tensor:
        model.zero_grad()
        step(scorer, groups).backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])

    one, other = gradients(packed_step), gradients(published_step)
    difference = ((one - other).norm() / other.norm()).item()
    if difference > 1e-3 and model.dtype == torch.float32:
        raise SystemExit(f"gradients differ by {difference:.2g} of their norm")
    pairs = args.groups * args.rejected
    print(f"a step of {args.groups} groups, {pairs} pairs, {args.side}-px images, median of {args.repeats} runs")
    print(f"difference of gradients {difference:.1e} of their norm on {model.device}, {model.dtype}")
    ways = {"packed groups": lambda: gradients(packed_step), "published form": lambda: gradients(published_step)}
    return ratio(ways, args.repeats, pairs)
