"""Compare two selections from one score table: what both keep, and what each keeps that the other drops.

    python python_script/compare_subsets.py output/mine output/balanced
    python python_script/compare_subsets.py output/a/subset_ids.parquet output/b --output output/a_or_b.html

Prints the overlap by source and writes a page with galleries of the pairs that only one of the two keeps.
"""

import argparse
from pathlib import Path

from src.config import exit_on_job_error
from src.curation.compare import compare_subsets


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", type=Path, help="subset_ids.parquet, or the folder that holds it")
    parser.add_argument("b", metavar="B", type=Path, help="likewise, cut from the same score table")
    parser.add_argument("--output", type=Path, help="HTML file (default: compare.html beside B)")
    parser.add_argument(
        "--scores-dir", type=Path, help="folder of the score table (default: the one that A and B name)"
    )
    parser.add_argument(
        "--gallery",
        type=int,
        default=6,
        help="images of each source that A alone keeps, and that B alone keeps (default 6; 0 for none)",
    )
    args = parser.parse_args(argv)
    with exit_on_job_error():
        comparison = compare_subsets(args.a, args.b, args.output, args.scores_dir, args.gallery)
        print(f"A  {args.a}")
        print(f"B  {args.b}")
        print("\n".join(comparison.lines()))
        print(f"Jaccard {comparison.total.jaccard:.3f}")
        print(f"page {comparison.path}")


if __name__ == "__main__":
    main()
