"""Scores of pairs that share images, beside the published scoring loop."""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from src.benchmark.measure import QUESTION, noise, ratio, sentences
from src.chat import pair_messages, render
from src.curation.scorer import Scorer

TOLERANCE = 1e-4  # between scores of the two ways in float32


def published_loop(scorer: Scorer, images: Sequence[Image.Image], question: str, texts: Sequence[str]) -> list[float]:
    """Score two pairs a forward, as the published scripts do, on the same model and template.

    Every pair is a row with its own copy of the image, which is preprocessed and encoded for it, and the whole prompt.

    Args:
        images: one for each text, in which an image may come again and again.
    """
    processor, scores = scorer.encoder.processor, []
    for start in range(0, len(texts), 2):
        shown, batch = list(images[start : start + 2]), texts[start : start + 2]
        prompts = [
            render(processor.tokenizer, pair_messages([image], text, question))
            for image, text in zip(shown, batch, strict=True)
        ]
        inputs = processor(text=prompts, images=shown, padding=True, return_tensors="pt")
        with torch.inference_mode():
            scores += scorer.model(**inputs.to(scorer.model.device), return_loss=False).values.tolist()
    return scores


def answers(args: argparse.Namespace) -> float:
    """N answers to one image: print both medians and return how many times as fast the scorer is."""
    print(f"{args.answers} answers of {args.words} words to one {args.side}-px image, median of {args.repeats} runs")
    scorer = Scorer.from_pretrained(args.model, max_pixels=args.side**2)
    return compare(scorer, args, images=1, texts=args.answers, question=QUESTION)


def captions(args: argparse.Namespace) -> float:
    """The same for captions: several of each of several images."""
    print(
        f"{args.captions} captions of {args.words} words for each of {args.images} {args.side}-px images, "
        f"median of {args.repeats} runs"
    )
    scorer = Scorer.from_pretrained(args.model, max_pixels=args.side**2)
    return compare(scorer, args, images=args.images, texts=args.captions)


def compare(
    scorer: Scorer,
    args: argparse.Namespace,
    images: int,
    texts: int,
    question: str = "",
    used: Callable[[float], str] | None = None,
) -> float:
    """How many times as fast as the published loop the scorer is, on ``texts`` texts of each of ``images`` images.

    Args:
        args: ``side``, ``words`` and ``repeats``.
        used: see :func:`src.benchmark.measure.ratio`.

    Raises:
        SystemExit: scores differ.
    """
    rng = np.random.default_rng(0)
    shown = [image for image in (noise(rng, args.side) for _ in range(images)) for _ in range(texts)]
    return race(scorer, shown, question, sentences(rng, len(shown), args.words), args.repeats, used)


def race(
    scorer: Scorer,
    shown: Sequence[Image.Image],
    question: str,
    said: Sequence[str],
    repeats: int,
    used: Callable[[float], str] | None = None,
) -> float:
    """As :func:`compare`, of these texts, each of the image at its place in ``shown``."""
    pairs = [{"image": image, "question": question, "text": text} for image, text in zip(shown, said, strict=True)]

    def ours() -> list[float]:
        return scorer.score(pairs)

    def theirs() -> list[float]:
        return published_loop(scorer, shown, question, said)

    difference = max(abs(a - b) for a, b in zip(ours(), theirs(), strict=True))
    if difference > TOLERANCE and scorer.model.dtype == torch.float32:
        raise SystemExit(f"scores differ by {difference:.2g}")
    print(f"largest difference of scores {difference:.1e} on {scorer.model.device}, {scorer.model.dtype}")
    return ratio({"scorer": ours, "published loop": theirs}, repeats, len(pairs), used)
