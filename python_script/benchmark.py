"""Measure a hot path beside the published way of doing it, in the same run; the last line is ``ratio <number>``.

    python python_script/benchmark.py score [--answers 16] [--side 448] [--words 12] [--repeats 5] [--model PATH]

score   N answers to one image: ``Scorer.score_candidates`` against the published best-of-N loop, which runs two
        candidates a forward, each with its own copy of the image and the whole prompt.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from src.chat import pair_messages, render
from src.curation.scorer import NANO, Scorer

WORDS = (
    "two",
    "three",
    "white",
    "red",
    "ships",
    "tanks",
    "cars",
    "near",
    "beside",
    "left",
    "of",
    "a",
    "the",
    "pier",
    "field",
)


def published_loop(scorer: Scorer, image: Image.Image, question: str, answers: Sequence[str]) -> list[float]:
    """Score two candidates a forward, as the published best-of-N scripts do, on the same model and template."""
    processor, scores = scorer.encoder.processor, []
    for start in range(0, len(answers), 2):
        batch = answers[start : start + 2]
        texts = [render(processor.tokenizer, pair_messages([image], answer, question)) for answer in batch]
        inputs = processor(text=texts, images=[image] * len(batch), padding=True, return_tensors="pt")
        with torch.inference_mode():
            scores += scorer.model(**inputs.to(scorer.model.device), return_loss=False).values.tolist()
    return scores


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def benchmark_score(args: argparse.Namespace) -> float:
    """Print both medians and return how many times as fast the scorer is; refuse scores that differ."""
    scorer = Scorer.from_pretrained(args.model, max_pixels=args.side**2)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (args.side, args.side, 3), dtype=np.uint8))
    answers = [" ".join(rng.choice(WORDS, args.words)) for _ in range(args.answers)]
    question = "What does the image show?"

    def ours() -> list[float]:
        return scorer.score_candidates([image], question, answers)

    def theirs() -> list[float]:
        return published_loop(scorer, image, question, answers)

    difference = max(abs(a - b) for a, b in zip(ours(), theirs(), strict=True))
    if difference > 1e-4 and scorer.model.dtype == torch.float32:
        raise SystemExit(f"scores differ by {difference:.2g}")
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(args.repeats)]
    fast, slow = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"{args.answers} answers of {args.words} words to one {args.side}-px image, median of {args.repeats} runs")
    print(f"largest difference of scores {difference:.1e} on {scorer.model.device}, {scorer.model.dtype}")
    print(f"score_candidates {fast:8.3f} s\npublished loop   {slow:8.3f} s")
    return statistics.median(theirs / ours for ours, theirs in pairs)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    score = jobs.add_parser("score", help="N answers to one image")
    score.add_argument("--answers", type=int, default=16, help="candidates (default 16)")
    score.add_argument("--side", type=int, default=448, help="image side in pixels, a multiple of 28 (default 448)")
    score.add_argument("--words", type=int, default=12, help="words in an answer (default 12)")
    score.add_argument("--repeats", type=int, default=5, help="timed runs of each (default 5)")
    score.add_argument("--model", default=NANO, help="score model (default: the embedded one)")
    score.set_defaults(run=benchmark_score)
    args = parser.parse_args(argv)
    print(f"ratio {args.run(args):.1f}")


if __name__ == "__main__":
    main()
