"""Cuts a score table to its best part: which pairs are kept, and the kept data in the input's own format.

The score table is the folder ``SCORES_DIR/scores/*.parquet`` beside its ``manifest.json``. DuckDB reads it out of
core: memory does not grow with the number of rows, and the order of rows or parts does not change the result.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import duckdb
from omegaconf import OmegaConf

from src.dataset.records import DataSpec
from src.dataset.writers import write_subset
from src.errors import JobError

MEMORY_LIMIT = "1GB"  # above it DuckDB spills to the output folder
BATCH_ROWS = 8192


@dataclass(frozen=True)
class Rule:
    """Which pairs to keep: exactly one of the two.

    Attributes:
        fraction: keep this part (0 < f <= 1) of the pairs that have a score, rounded down, at least one pair.
        threshold: keep every pair with ``score >= threshold``.
    """

    fraction: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.threshold is None):
            raise JobError(f"give exactly one of fraction and threshold, not {self.describe()}")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            hint = f"; did you mean {self.fraction / 100:g}?" if 1 < self.fraction <= 100 else ""
            raise JobError(f"fraction must be above 0 and at most 1, not {self.fraction:g}{hint}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise JobError(f"threshold must be a finite number, not {self.threshold}")

    def describe(self) -> str:
        given = [f"{name}={value:g}" for name, value in asdict(self).items() if value is not None]
        return " and ".join(given) or "neither"


@dataclass(frozen=True)
class Selection:
    """What a rule kept: ``pairs = ok + errors``, ``kept`` of the ``ok``; ``cut`` is the lowest score kept."""

    path: Path
    pairs: int
    ok: int
    errors: int
    kept: int
    cut: float

    def __str__(self) -> str:
        share = f"{self.kept / self.ok:.1%}"
        return (
            f"{self.ok:,} ok + {self.errors:,} errors = {self.pairs:,} pairs; "
            f"kept {self.kept:,} ({share} of ok), all with score >= {self.cut:.4g}"
        )


def select_subset(scores_dir: str | Path, output_dir: str | Path, rule: Rule) -> Selection:
    """Writes ``subset_ids.parquet`` and ``rule.yaml`` into ``output_dir``.

    ``subset_ids.parquet`` has the columns id, row, text_index, score, sorted by id; its metadata entry ``rule`` is
    the rule with its counts as JSON. Pairs with equal scores at the cut are taken in the order of their ids.

    Raises:
        JobError: no finished score table, no pair with a score, a score that is not a finite number, or a
            threshold that keeps nothing.
    """
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    with open_scores(scores_dir, spill_dir=output) as db:
        pairs, ok, not_finite, highest = one_row(
            db,
            """SELECT count(*), count(*) FILTER (status = 'ok'),
            min(id) FILTER (status = 'ok' AND NOT coalesce(isfinite(score), false)),
            max(score) FILTER (status = 'ok') FROM scores""",
        )
        if not ok:
            kinds = db.execute("SELECT status, count(*) FROM scores GROUP BY 1 ORDER BY 2 DESC, 1").fetchall()
            raise JobError(f"no pair has a score: {', '.join(f'{n} {kind}' for kind, n in kinds) or 'no rows'}")
        if not_finite is not None:
            raise JobError(f"the score of {not_finite} is not a finite number, though its status is ok")
        _create_kept(db, rule, ok)
        kept, cut = one_row(db, "SELECT count(*), min(score) FROM kept")
        if not kept:
            raise JobError(f"{rule.describe()} keeps nothing: the highest score is {highest:g}")
        counts = {"pairs": pairs, "ok": ok, "errors": pairs - ok, "kept": kept, "cut": cut}
        facts = {**asdict(rule), "ties": "id", **counts}
        partial, target = output / ".subset_ids.parquet.partial", output / "subset_ids.parquet"
        db.execute(
            """COPY (SELECT * FROM kept ORDER BY id, row, text_index)
            TO ? (FORMAT parquet, COMPRESSION zstd, KV_METADATA {rule: ?})""",
            [str(partial), json.dumps(facts)],
        )
    partial.replace(target)
    (output / "rule.yaml").write_text(OmegaConf.to_yaml(facts), encoding="utf-8")
    return Selection(target, **counts)


def write_kept(scores_dir: str | Path, subset: Path, output_dir: str | Path) -> Path:
    """The kept rows of the scored data in their own format with a score column; path of the written file."""
    return write_subset(data_spec(read_manifest(scores_dir)), kept_rows(subset), output_dir)


def kept_rows(subset: Path) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """(row, [(text_index, score), ...]) for each kept record, in rising row order, streaming."""
    with _connect(spill_dir=subset.parent) as db:
        db.read_parquet(str(subset)).create_view("kept")
        reader = db.sql("SELECT row, text_index, score FROM kept ORDER BY row, text_index").to_arrow_reader(BATCH_ROWS)
        triples = (t for batch in reader for t in zip(*(c.to_pylist() for c in batch.columns), strict=True))
        for row, group in groupby(triples, key=itemgetter(0)):
            yield row, [(text_index, score) for _, text_index, score in group]


@contextmanager
def open_scores(scores_dir: str | Path, spill_dir: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection with the score table as the view ``scores``; its errors become ``JobError``."""
    parts = sorted(str(part) for part in Path(scores_dir, "scores").glob("*.parquet"))
    if not parts:
        raise JobError(f"no score table: {Path(scores_dir, 'scores')} has no .parquet file")
    if not Path(scores_dir, "summary.json").is_file():
        raise JobError(f"{scores_dir} has no summary.json: its scoring job has not finished, run it again")
    try:
        with _connect(spill_dir) as db:
            db.read_parquet(parts).create_view("scores")
            yield db
    except duckdb.Error as error:
        raise JobError(f"cannot use the score table in {scores_dir}: {str(error).splitlines()[0]}") from error


def one_row(db: duckdb.DuckDBPyConnection, sql: str, values: Sequence[object] = ()) -> tuple[Any, ...]:
    """The first row of a query that always has one."""
    row = db.execute(sql, values).fetchone()
    assert row is not None
    return row


def read_manifest(scores_dir: str | Path) -> dict[str, Any]:
    """``manifest.json`` of a scoring job: data, input, model, template, position_scheme, versions."""
    path = Path(scores_dir, "manifest.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"cannot read {path}: {error}") from error


def data_spec(manifest: dict[str, Any]) -> DataSpec:
    """The description of the input that was scored."""
    try:
        return DataSpec(**manifest["data"])
    except (KeyError, TypeError) as error:
        raise JobError(f"manifest.json does not describe its data: {error}") from error


def _create_kept(db: duckdb.DuckDBPyConnection, rule: Rule, ok: int) -> None:
    """The view ``kept``. Bare scores are sorted to find the cut, ids only where a score is equal to it."""
    if rule.threshold is not None:
        cut, ties = rule.threshold, ok
    else:
        # Decimal: 0.29 of 100 pairs are 29, though 0.29 * 100 is 28.999999999999996 in floating point
        quota = max(1, int(Decimal(str(rule.fraction)) * ok))
        ranked = "SELECT score FROM scores WHERE status = 'ok' ORDER BY score DESC LIMIT 1 OFFSET ?"
        (cut,) = one_row(db, ranked, [quota - 1])
        (above,) = one_row(db, "SELECT count(*) FROM scores WHERE status = 'ok' AND score > ?::DOUBLE", [cut])
        ties = quota - above
    db.execute("SET VARIABLE cut = ?::DOUBLE", [cut])
    db.execute("SET VARIABLE ties = ?::BIGINT", [ties])
    # ids are unique in a sound table; row and text_index make the order total in any
    db.execute(
        """CREATE VIEW kept AS
        WITH scored AS (SELECT id, row, text_index, score FROM scores WHERE status = 'ok')
        SELECT * FROM scored WHERE score > getvariable('cut')
        UNION ALL (SELECT * FROM scored WHERE score = getvariable('cut')
                   ORDER BY id, row, text_index LIMIT getvariable('ties'))"""
    )


@contextmanager
def _connect(spill_dir: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with (
        tempfile.TemporaryDirectory(prefix=".spill-", dir=spill_dir) as spill,
        duckdb.connect(f"{spill}/work.duckdb", config={"memory_limit": MEMORY_LIMIT, "temp_directory": spill}) as db,
    ):
        yield db
