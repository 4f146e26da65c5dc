"""Print what a selection kept of each value of a column, beside a random draw of the same size.

    python python_script/tally_subset.py output/mine --column scene
    python python_script/tally_subset.py output/quickstart --column corruption --good clean

Needs a selection: run select_subset.py first.
"""

import argparse
from pathlib import Path

from src.config import exit_on_job_error
from src.curation.tally import Tally, tally
from src.errors import JobError


def lines(rows: list[Tally], column: str) -> list[str]:
    """The table as text, the total last."""
    total = Tally("all", *(sum(getattr(row, name) for row in rows) for name in ("pairs", "kept", "random")))
    width = max(len(column), *(len(row.value) for row in rows))
    head = f"{column:<{width}}  {'pairs':>7}  {'kept':>7}  {'kept %':>7}  {'random %':>8}"
    body = [
        f"{row.value:<{width}}  {row.pairs:>7,}  {row.kept:>7,}"
        f"  {row.kept / row.pairs:>7.1%}  {row.random / row.pairs:>8.1%}"
        for row in [*rows, total]
    ]
    return [head, *body]


def good_line(rows: list[Tally], good: str) -> str:
    """How much of what was kept is good, against the base rate and the random draw."""
    found = [row for row in rows if row.value == good]
    if not found:
        raise JobError(f"no pair has the value {good!r}; values: {', '.join(row.value for row in rows[:12])}")
    best = found[0]
    pairs, kept, random = (sum(getattr(row, name) for row in rows) for name in ("pairs", "kept", "random"))
    shares = f"{best.kept / kept:.1%} of the kept pairs are {good}"
    return f"{shares}; {best.pairs / pairs:.1%} of all, {best.random / random:.1%} of a random draw of the same size"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores_dir", type=Path, help="folder written by score_dataset.py")
    parser.add_argument("--subset", type=Path, help="subset_ids.parquet (default: the one in scores_dir)")
    parser.add_argument("--column", required=True, help="column of the scored data set to count by")
    parser.add_argument("--good", help="value to state the share of among the kept pairs")
    parser.add_argument("--seed", type=int, default=0, help="of the random draw (default 0)")
    args = parser.parse_args(argv)
    with exit_on_job_error():
        rows = tally(args.scores_dir, args.subset or args.scores_dir / "subset_ids.parquet", args.column, args.seed)
        print("\n".join(lines(rows, args.column)))
        if args.good:
            print(good_line(rows, args.good))


if __name__ == "__main__":
    main()
