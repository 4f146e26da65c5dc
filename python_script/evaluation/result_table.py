"""Set the results of models side by side: a table of sets for each task and metric, with averages and intervals.

    python python_script/evaluation/result_table.py output/zero_shot output/retrieval

Reads every result in and below the folders, as clip_classification.py and eval_retrieval.py write them; prints the
tables as Markdown and writes results.md, results.csv, results.html and results.png. A model has an average only if it
has a value on every set of the table: else there is a dash, and what is missing is named.
"""

import argparse
from pathlib import Path

from src.config import exit_on_job_error
from src.evaluation.result_table import MAIN, markdown, tables_of, write_tables
from src.evaluation.results import read_results


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="folders with results")
    add("--output", type=Path, default=Path("output/results"), help="folder to write (%(default)s)")
    add("--metrics", nargs="+", default=[], metavar="NAME", help=f"or all; default: {', '.join(MAIN)}, where there are")
    add("--sets", nargs="+", default=[], metavar="NAME", help="columns, and members of the average; default: all")
    args = parser.parse_args(argv)
    with exit_on_job_error():
        tables = tables_of(read_results(args.folders), args.metrics, args.sets)
        paths = write_tables(tables, args.output)
        print(markdown(tables), *paths, sep="\n")


if __name__ == "__main__":
    main()
