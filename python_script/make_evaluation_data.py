"""Make a folder of evaluation data for rs_evaluation.py: questions about made scenes, and those of CHOICE.

    python python_script/make_evaluation_data.py --output output/evaluation_data
    python python_script/make_evaluation_data.py --output output/evaluation_data --choice choice.parquet

Every scene is asked one question of each kind (scene, presence, count, colour, relation, grounding, caption), and one
with options. --choice
adds the multiple-choice and grounding questions of a Parquet file of the CHOICE benchmark.
"""

import argparse
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from src.config import exit_on_job_error
from src.dataset.scenes import scene_seeds
from src.evaluation.tasks.make import choice_records, scene_records, write_records


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder to write")
    add("--scenes", type=int, default=100, help="made scenes; 0: none (%(default)s)")
    add("--seed", type=int, default=77, help="other than that of training data: scenes are then others (%(default)s)")
    add("--size", type=int, default=112, help="side of the scenes in pixels (%(default)s)")
    add("--choice", type=Path, help="Parquet file of CHOICE")
    args = parser.parse_args(argv)
    if args.scenes < 0 or args.size < 56:
        parser.error("need --scenes >= 0 and --size >= 56")
    left_out: Counter[str] = Counter()
    with exit_on_job_error():
        counts: dict[str, int] = {}
        if args.scenes:
            seeds = tqdm(scene_seeds(args.seed, args.scenes), "scenes", unit=" scenes")
            counts |= write_records(scene_records(seeds, args.output, args.size), args.output)
        if args.choice:
            counts |= write_records(choice_records(args.choice, args.output, left_out), args.output)
    print("\n".join(f"{name:<16} {count:>8}" for name, count in counts.items()))
    if left_out:
        print(f"left out: {', '.join(f'{kind} {number}' for kind, number in sorted(left_out.items()))} rows")
    print(f"data: {args.output}")


if __name__ == "__main__":
    main()
