"""Make instruction data: conversations about made scenes, and captions of real images, each with its kind.

    python python_script/make_vlm_data.py --output output/vlm_data/train.parquet --scenes 2000 --seed 21
    python python_script/make_vlm_data.py --output output/vlm_data/train.jsonl --questions 6 --turns 3 \\
        --captions rsicd_aid_train.parquet --captions-column captions

A ``.parquet`` file holds its images, one question a row; ``.jsonl`` is ShareGPT with a folder ``images`` beside it, and
takes several turns a conversation. Data of different seeds share no scene: train on one seed, measure on another.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from src.config import exit_on_job_error
from src.dataset.instructions import (
    KINDS,
    Conversation,
    caption_conversations,
    in_turns,
    scene_conversations,
    write_instructions,
)
from src.dataset.records import DataSpec
from src.dataset.scenes import scene_seeds


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make conversations about made scenes and captioned images.")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .parquet or .jsonl")
    parser.add_argument("--scenes", type=int, default=1000, help="number of made scenes; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="data of different seeds share no scene")
    parser.add_argument("--size", type=int, default=224, help="side of the scenes in pixels")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS),
                        help="kinds of questions; named more than once: asked more often")  # fmt: skip
    parser.add_argument("--questions", type=int, default=1, help="questions of different kinds about a scene")
    parser.add_argument("--turns", type=int, default=1, help="questions a conversation, at most; above 1 for .jsonl")
    parser.add_argument("--thinking", action="store_true", help="scenes in the thinking format; for .jsonl")
    parser.add_argument("--captions", help="captioned data set, in any format that score_dataset.py reads")
    parser.add_argument("--captions-root", help="folder of its images")
    parser.add_argument("--image-column", default="filename", help="its images")
    parser.add_argument("--captions-column", default="title", help="its captions")
    args = parser.parse_args(argv)
    lines_only = args.turns > 1 or args.thinking
    if args.output.suffix not in (".parquet", ".jsonl") or (lines_only and args.output.suffix == ".parquet"):
        parser.error("--output must be .parquet, or .jsonl, which --turns above 1 and --thinking need")
    if args.scenes < 0 or args.size < 56 or not 1 <= args.questions <= len(args.kinds) or args.turns < 1:
        parser.error("need --scenes >= 0, --size >= 56, 1 <= --questions <= number of --kinds, and --turns >= 1")
    errors: Counter[str] = Counter()

    def conversations() -> Iterator[Conversation]:
        if args.scenes:
            seeds = tqdm(scene_seeds(args.seed, args.scenes), "scenes", unit=" scenes")
            yield from scene_conversations(seeds, args.kinds, args.questions, args.size, args.thinking)
        if args.captions:
            spec = DataSpec(args.captions, args.captions_root, args.image_column, args.captions_column)
            yield from tqdm(caption_conversations(spec, errors, args.seed), "captions", unit=" captions")

    with exit_on_job_error():
        counts = write_instructions(in_turns(conversations(), args.turns), args.output)
    print("\n".join(f"{kind:<16} {count:>8}" for kind, count in sorted(counts.items())))
    if errors:
        print(f"left out: {', '.join(f'{kind} {number}' for kind, number in sorted(errors.items()))} records")
    print(f"conversations: {args.output}")


if __name__ == "__main__":
    main()
