"""Batched generation, beside the published loop, which hands the model one request at a time."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from src.benchmark.measure import ratio
from src.chat import prompt_messages, render
from src.dataset.scenes import make_scene, scene_seeds
from src.evaluation.backends import Request, Sampling
from src.evaluation.backends.transformers_model import TransformersBackend, TransformersOptions

NANO_BASE = "assets/nano/base"


def published_loop(model: Any, processor: Any, requests: Sequence[Request], tokens: int) -> list[str]:
    """The likeliest text of each request, one after the other, as the published scripts ask for them."""
    texts = []
    for request in requests:
        prompt = render(processor, prompt_messages(request.turns, request.sources), open_turn=True)
        inputs = processor(text=[prompt], images=list(request.sources), return_tensors="pt").to(model.device)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0]
        texts.append(processor.tokenizer.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def generate(args: argparse.Namespace) -> float:
    """Captions of made scenes: print both medians and return how many times as fast batches are.

    Texts have ``args.tokens`` tokens each; with ``args.ragged`` they end where the model ends them, and a batch goes on
    until its longest text is done.

    Raises:
        SystemExit: texts differ, in float32.
    """
    options = TransformersOptions(batch_size=args.batch, progress=False, max_pixels=args.side**2)
    backend = TransformersBackend(args.vlm, options)
    if not args.ragged:
        backend.model.generation_config.min_new_tokens = args.tokens  # both ways follow it
    requests = [Request("", [make_scene(seed, size=args.side).image]) for seed in scene_seeds(0, args.requests)]
    sampling = Sampling(max_new_tokens=args.tokens)
    print(
        f"{args.tokens} tokens{' at most' * args.ragged} for each of {args.requests} {args.side}-px images, "
        f"{args.batch} in a batch, median of {args.repeats} runs on {backend.model.device}, {backend.model.dtype}"
    )

    def ours() -> list[str]:
        return [text for (text,) in backend.generate(requests, sampling)]

    def theirs() -> list[str]:
        return published_loop(backend.model, backend.processor, requests, args.tokens)

    differing = sum(a != b for a, b in zip(ours(), theirs(), strict=True))
    if differing and backend.model.dtype == torch.float32:
        raise SystemExit(f"{differing} texts differ")
    return ratio({"batches": ours, "published loop": theirs}, args.repeats, len(requests))
