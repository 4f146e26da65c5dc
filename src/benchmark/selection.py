"""Selection from large made score tables: beside the published loader, and its memory where each class has a quota."""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import duckdb
from pyarrow import csv

from src.benchmark.measure import peak_memory, ratio
from src.curation.rules import Rule
from src.curation.score_table import connect
from src.curation.select import select_subset

FRACTION = 0.3
QUOTA = """
import sys
from src.curation.rules import Rule
from src.curation.select import select_subset
folder, fraction = sys.argv[1:]
select_subset(folder, folder, Rule(fraction=float(fraction), group_by="source"))
"""
BOUND = 2e9  # bytes that selection may take, whatever the number of rows
_ROWS_OF_A_PART = 2**20
# Multiplication by odd numbers, modulo a power of two: scores without ties to speak of, from the row number alone.
_SCORE = "((row * 2654435761) % 4294967296) / 4294967296.0"


def select(args: argparse.Namespace) -> float:
    """Top 30 % of a table: print both medians and return how many times as fast ours is; both must keep the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder, args.rows, args.classes)
        write_published_csv(folder, args.files)
        kept: dict[str, tuple[int, float]] = {}  # how many, and the lowest score: no two rows have the same

        def ours() -> None:
            selection = select_subset(folder, folder / "ours", Rule(fraction=FRACTION))
            kept["ours"] = selection.kept, selection.cut

        def theirs() -> None:
            frame = published_selection(folder / "data.csv", folder / "images")
            kept["theirs"] = len(frame), frame["clip_score"].min()

        print(f"top {FRACTION:.0%} of {args.rows:,} rows, median of {args.repeats} runs")
        result = ratio({"select_subset": ours, "published loader": theirs}, args.repeats)
    if kept["ours"] != kept["theirs"]:
        raise SystemExit(f"what is kept differs (rows, lowest score): {kept}")
    return result


def quota(args: argparse.Namespace) -> float:
    """Top 30 % of each class: print the peak memory of the program and return it as a share of 2 GB."""
    with tempfile.TemporaryDirectory() as name:
        write_table(Path(name), args.rows, args.classes)
        peak = peak_memory(QUOTA, [name, str(FRACTION)])
    print(f"top {FRACTION:.0%} of each of {args.classes} classes of {args.rows:,} rows: at most {peak / 1e9:.2f} GB")
    return peak / BOUND


def published_selection(table: Path, images: Path) -> Any:
    """What the published loader of CLIP training does, on a pandas frame: drop rows without image, sort, keep a part.

    Two things are made easy for it: Arrow reads the table, which is quicker than pandas, and images, each looked for in
    a call of its own, are so few that the system has them in memory.
    """
    frame = csv.read_csv(table).to_pandas()
    frame = frame[[os.path.exists(os.path.join(images, name)) for name in frame["filename"]]]  # noqa: PTH110, PTH118
    return frame.sort_values("clip_score", ascending=False)[: int(len(frame) * FRACTION)]


def write_table(folder: Path, rows: int, classes: int) -> None:
    """A finished score table of so many ok rows in ``folder``, the same at every call."""
    (folder / "scores").mkdir(parents=True)
    with connect(spill_dir=folder) as db:
        for start in range(0, rows, _ROWS_OF_A_PART):
            stop = min(rows, start + _ROWS_OF_A_PART)
            db.execute(
                f"""COPY (SELECT 'data.csv:' || lpad(row::VARCHAR, 8, '0') AS id, row, 0::INTEGER AS text_index,
                {_SCORE} AS score, 'ok' AS status, NULL::VARCHAR AS error,
                'class ' || (row * 40503 % {int(classes)}) AS source, (20 + row % 60)::INTEGER AS text_chars,
                224::INTEGER AS width, 224::INTEGER AS height, 'answer' AS template, 'made' AS model,
                'mrope' AS position_scheme FROM range({start}, {stop}) made(row))
                TO '{folder}/scores/part-{start:010d}.parquet' (FORMAT parquet, COMPRESSION zstd)"""  # noqa: S608
            )
    (folder / "manifest.json").write_text(json.dumps({"data": {"path": "data.csv"}}), encoding="utf-8")
    (folder / "summary.json").write_text("{}", encoding="utf-8")


def write_published_csv(folder: Path, files: int) -> None:
    """The same rows as the published table, ``filename,title,clip_score``, over so many image files that are there."""
    (folder / "images").mkdir()
    for number in range(files):
        (folder / "images" / f"{number:06d}.jpg").touch()
    with duckdb.connect() as db:
        db.execute(
            f"""COPY (SELECT lpad((row % {int(files)})::VARCHAR, 6, '0') || '.jpg' AS filename,
            'a caption of about twelve words that says what row ' || row || ' shows' AS title, score AS clip_score
            FROM read_parquet('{folder}/scores/*.parquet')) TO '{folder}/data.csv' (HEADER)"""  # noqa: S608
        )
