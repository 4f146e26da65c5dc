"""Measure a hot path beside the published way of doing it, in the same run; the last line is ``ratio <number>``.

    python python_script/benchmark.py score [--answers 16] [--side 448] [--words 12] [--repeats 5] [--model PATH]
    python python_script/benchmark.py outside [--pairs 1024] [--batch 64] [--side 224]
    python python_script/benchmark.py select [--rows 5000000]
    python python_script/benchmark.py score --shape 7b --answers 64

score         N answers to one image: ``Scorer.score`` against the published best-of-N loop, which runs two
              candidates a forward, each with its own copy of the image and the whole prompt. With --shape, the same
              for pairs of an image each on a GPU, in bfloat16, at a true size of Qwen2-VL with random weights.
bon           the same for distinct answers of an exact length: 16 and 64 of 20 tokens and 64 of 4, each with the ratio
              that counted operations allow; the last line is the least ratio.
captions      several captions of each of several images: the same beside the published scoring loop.
train_reward  one training step, preprocessing and gradients included: groups in packed rows, each image once, against
              the published form, a pair per rejected answer, each of its two conversations with the image.
clip          one training step of CLIP, decoding included, against the plain loop with transformers' own loss.
generate      likeliest captions of images by a vision-language model: batches against one request after the other.
outside       a whole scoring job on files of made scenes: the share of its time that is spent outside the model.
memory        whole scoring jobs on few and on many records: how many times as much memory many take, at most.
select        top 30 % of a large score table, against the published loader, which looks for each image and sorts.
reward_server rewards of completions by many clients at once, several on each image: requests a second of the server
              of src/serving against the published handler, which runs one pair a forward inside an async function.
restart       the same server, killed and started again in the middle: the share of rewards that are right.
quota         top 30 % of each class of a larger one: peak memory, as a share of 2 GB.
"""

import argparse
from collections.abc import Callable, Sequence

from src.benchmark import best_of_n, clip, generation, jobs, pairs, selection, serving, shapes, training
from src.curation.scorer import NANO
from src.errors import JobError
from src.model.clip import NANO_CLIP

Job = Callable[[argparse.Namespace], float]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    entries = parser.add_subparsers(dest="job", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--words", type=int, default=12, help="words in a text (default 12)")
    common.add_argument("--repeats", type=int, default=5, help="timed runs of each (default 5)")
    common.add_argument("--model", default=NANO, help="score model (default: the embedded one)")

    def entry(name: str, run: Job, what: str, side: int = 448) -> argparse.ArgumentParser:
        made = entries.add_parser(name, parents=[common], help=what)
        made.add_argument("--side", type=int, default=side, help=f"image side, a multiple of 28 (default {side})")
        made.set_defaults(run=run)
        return made

    score = entry("score", pairs.answers, "N answers to one image")
    score.add_argument("--answers", type=int, default=16, help="candidates, or pairs with --shape (default 16)")
    shape_help = "random weights of this size of Qwen2-VL on a GPU, and an image of its own for each answer"
    score.add_argument("--shape", choices=shapes.SHAPES, help=shape_help)
    bon = entry("bon", best_of_n.best_of_n, "candidates of one image and question")
    bon.add_argument("--tokens", type=int, help="of an answer, in one case alone instead of three")
    bon.add_argument("--candidates", type=int, default=16, help="in that case (default 16)")
    captions = entry("captions", pairs.captions, "several captions of each image")
    captions.add_argument("--images", type=int, default=8, help="images (default 8)")
    captions.add_argument("--captions", type=int, default=5, help="captions of an image (default 5)")
    train = entry("train_reward", training.step, "one training step on preference groups")
    train.add_argument("--groups", type=int, default=4, help="groups in a step (default 4)")
    train.add_argument("--rejected", type=int, default=4, help="rejected answers in a group (default 4)")
    contrast = entry("clip", clip.step, "one training step of CLIP", side=224)
    contrast.add_argument("--batch", type=int, default=128, help="pairs in a step (default 128)")
    contrast.add_argument("--captions", type=int, default=1, help="pairs that share an image (default 1)")
    contrast.add_argument("--clip", default=NANO_CLIP, help="CLIP model (default: the embedded one)")
    generation_entry(entry)
    outside = entry("outside", jobs.outside, "time of a scoring job outside the model", side=224)
    outside.add_argument("--pairs", type=int, default=1024, help="pairs, an image each (default 1024)")
    outside.add_argument("--batch", type=int, default=64, help="pairs in a batch (default 64)")
    memory = entry("memory", jobs.memory, "memory of a scoring job", side=56)
    memory.add_argument("--few", type=int, default=2_000, help="records of the small job (default 2,000)")
    memory.add_argument("--many", type=int, default=20_000, help="records of the large job (default 20,000)")
    memory.add_argument("--images", type=int, default=64, help="images that the records share (default 64)")
    memory.add_argument("--format", choices=("csv", "parquet"), default="csv", help="of the data (default csv)")
    serving_entries(entry)
    for name, run, rows, what in (
        ("select", selection.select, 5_000_000, "top 30 % of a score table"),
        ("quota", selection.quota, 50_000_000, "top 30 % of each class of a score table"),
    ):
        made = entries.add_parser(name, help=what)
        made.add_argument("--rows", type=int, default=rows, help=f"rows of the table (default {rows:,})")
        made.add_argument("--classes", type=int, default=50, help="classes of the rows (default 50)")
        made.set_defaults(run=run)
        if name == "select":
            made.add_argument("--files", type=int, default=1000, help="image files of the rows (default 1,000)")
            made.add_argument("--repeats", type=int, default=3, help="timed runs of each (default 3)")
    args = parser.parse_args(argv)
    run = shapes.shape if getattr(args, "shape", None) else args.run
    try:
        print(f"ratio {run(args):.2f}")
    except JobError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def generation_entry(entry: Callable[..., argparse.ArgumentParser]) -> None:
    """The one of generation."""
    answers = entry("generate", generation.generate, "captions by a vision-language model", side=112)
    for flag, default, what in (
        ("requests", 64, "images"),
        ("batch", 16, "of them in a batch"),
        ("tokens", 64, "of a text"),
    ):
        answers.add_argument(f"--{flag}", type=int, default=default, help=f"{what} (default {default})")
    answers.add_argument("--ragged", action="store_true", help="let texts end where the model ends them")
    answers.add_argument(
        "--vlm", default=generation.NANO_BASE, help="vision-language model (default: the embedded one)"
    )


def serving_entries(entry: Callable[..., argparse.ArgumentParser]) -> None:
    """The two of the reward server."""
    server = entry("reward_server", serving.load, "requests a second of the reward server")
    server.add_argument("--requests", type=int, default=320, help="of two completions each (default 320)")
    server.add_argument("--completions", type=int, default=5, help="requests on each image (default 5)")
    crashed = entry("restart", serving.restart, "rewards by a server that is killed and started again", side=112)
    crashed.add_argument("--requests", type=int, default=10_000, help="of two completions each (default 10,000)")
    crashed.add_argument("--images", type=int, default=64, help="images that they share (default 64)")
    for made in (server, crashed):
        made.add_argument("--clients", type=int, default=64, help="requests at a time (default 64)")


if __name__ == "__main__":
    main()
