"""Best of N: distinct candidates of one image and question judged by the scorer, beside the published loop."""

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from src.benchmark.measure import QUESTION, noise, sentences
from src.benchmark.pairs import race
from src.benchmark.shapes import head_flops, pair_flops, text_flops, vision_flops
from src.curation.scorer import Scorer
from src.errors import JobError
from src.model.packing import common_prefix

CASES = ((20, 16), (20, 64), (4, 64))  # (tokens of an answer, candidates)


def best_of_n(args: argparse.Namespace) -> float:
    """Print each case with the ratio that its operations allow, and return the least ratio of all.

    Raises:
        SystemExit: scores differ, in float32.
        JobError: fewer tokens than such distinct answers need.
    """
    scorer = Scorer.from_pretrained(args.model, max_pixels=args.side**2)
    given = [(args.tokens, args.candidates)] if args.tokens else CASES
    return min(case(scorer, args.side, args.repeats, *one) for one in given)


def case(scorer: Scorer, side: int, repeats: int, tokens: int, candidates: int) -> float:
    """One case; see :func:`best_of_n`."""
    print(f"{candidates} answers of {tokens} tokens to one {side}-px image, median of {repeats} runs")
    rng = np.random.default_rng(0)
    image = noise(rng, side)
    said = distinct_answers(scorer, rng, tokens, candidates)
    measured = race(scorer, [image] * candidates, QUESTION, said, repeats)
    allowed = allowed_ratio(scorer, image, said)
    print(f"ratio {measured:.2f}; operations allow {allowed:.2f}: {1 - measured / allowed:.0%} of it is lost\n")
    return measured


def distinct_answers(scorer: Scorer, rng: np.random.Generator, tokens: int, count: int) -> list[str]:
    """Answers of so many tokens each, no two the same.

    Raises:
        JobError: so many are not found.
    """

    def drawn() -> Iterator[str]:
        for _ in range(1000 * count):
            (text,) = sentences(rng, 1, tokens)
            ids = scorer.encoder.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(ids) == tokens:
                yield text

    found: dict[str, None] = {}
    for text in drawn():
        found[text] = None
        if len(found) == count:
            return list(found)
    raise JobError(f"of answers of {tokens} tokens only {len(found)} were found, not {count}")


def allowed_ratio(scorer: Scorer, image: Image.Image, said: Sequence[str]) -> float:
    """Operations of the published loop over the scorer's, which has image and common prompt once for all answers."""
    encoder, config = scorer.encoder, scorer.model.config
    encoded = encoder.image(image)
    patches = len(encoded.pixel_values)
    prompts = [encoder.prompt({"question": QUESTION, "text": text}, [encoded]) for text in said]
    rows = [ids for ids in encoder.token_ids(prompts) if not isinstance(ids, Exception)]
    shared = common_prefix(rows)
    theirs = sum(pair_flops(config, len(ids), patches) for ids in rows)
    ours = vision_flops(config, patches) + text_flops(config, shared, shared)
    ours += sum(text_flops(config, len(ids) - shared, len(ids)) + head_flops(config) for ids in rows)
    return theirs / ours
