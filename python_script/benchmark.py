"""Measure a hot path beside the published way of doing it, in the same run; the last line is ``ratio <number>``.

    python python_script/benchmark.py score [--answers 16] [--side 448] [--words 12] [--repeats 5] [--model PATH]
    python python_script/benchmark.py train_reward [--groups 4] [--rejected 4] [--side 448] [--words 12] ...

score         N answers to one image: ``Scorer.score_candidates`` against the published best-of-N loop, which runs two
              candidates a forward, each with its own copy of the image and the whole prompt.
train_reward  one training step, preprocessing and gradients included: groups in packed rows, each image once, against
              the published form, a pair per rejected answer, each of its two conversations with the image.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from src.chat import pair_messages, render
from src.curation.scorer import NANO, Scorer
from src.model.ranking import pairwise_loss
from src.training.reward import PreferenceCollator

WORDS = ("two", "three", "white", "red", "ships", "tanks", "cars", "near", "beside", "left", "of", "a", "the", "pier",
         "field")  # fmt: skip
QUESTION = "What does the image show?"


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


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def benchmark_score(args: argparse.Namespace) -> float:
    """Print both medians and return how many times as fast the scorer is; refuse scores that differ."""
    scorer = Scorer.from_pretrained(args.model, max_pixels=args.side**2)
    rng = np.random.default_rng(0)
    image, answers = noise(rng, args.side), sentences(rng, args.answers, args.words)

    def ours() -> list[float]:
        return scorer.score_candidates([image], QUESTION, answers)

    def theirs() -> list[float]:
        return published_loop(scorer, image, QUESTION, answers)

    difference = max(abs(a - b) for a, b in zip(ours(), theirs(), strict=True))
    if difference > 1e-4 and scorer.model.dtype == torch.float32:
        raise SystemExit(f"scores differ by {difference:.2g}")
    print(f"{args.answers} answers of {args.words} words to one {args.side}-px image, median of {args.repeats} runs")
    print(f"largest difference of scores {difference:.1e} on {scorer.model.device}, {scorer.model.dtype}")
    return ratio({"score_candidates": ours, "published loop": theirs}, args.repeats)


def benchmark_train_reward(args: argparse.Namespace) -> float:
    """Print both medians and return how many times as fast packed groups train; refuse gradients that differ."""
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


def noise(rng: np.random.Generator, side: int) -> Image.Image:
    """A random image."""
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def sentences(rng: np.random.Generator, count: int, words: int) -> list[str]:
    """Random sentences."""
    return [" ".join(rng.choice(WORDS, words)) for _ in range(count)]


def ratio(ways: Mapping[str, Callable[[], object]], repeats: int, pairs: int = 0) -> float:
    """Time two ways in turn, print the median of each (and pairs a second), and return the median of second / first."""
    times = [tuple(seconds(way) for way in ways.values()) for _ in range(repeats)]
    for name, taken in zip(ways, zip(*times, strict=True), strict=True):
        median = statistics.median(taken)
        print(f"{name:<16} {median:8.3f} s" + (f"  {pairs / median:8.1f} pairs/s" if pairs else ""))
    return statistics.median(theirs / ours for ours, theirs in times)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--side", type=int, default=448, help="image side in pixels, a multiple of 28 (default 448)")
    common.add_argument("--words", type=int, default=12, help="words in an answer (default 12)")
    common.add_argument("--repeats", type=int, default=5, help="timed runs of each (default 5)")
    common.add_argument("--model", default=NANO, help="score model (default: the embedded one)")
    score = jobs.add_parser("score", parents=[common], help="N answers to one image")
    score.add_argument("--answers", type=int, default=16, help="candidates (default 16)")
    score.set_defaults(run=benchmark_score)
    train = jobs.add_parser("train_reward", parents=[common], help="one training step on preference groups")
    train.add_argument("--groups", type=int, default=4, help="groups in a step (default 4)")
    train.add_argument("--rejected", type=int, default=4, help="rejected answers in a group (default 4)")
    train.set_defaults(run=benchmark_train_reward)
    args = parser.parse_args(argv)
    print(f"ratio {args.run(args):.1f}")


if __name__ == "__main__":
    main()
