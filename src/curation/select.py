"""Cuts a score table to its best part: which pairs are kept, and the kept data in the input's own format.

The score table is the folder ``SCORES_DIR/scores/*.parquet`` beside its ``manifest.json``. DuckDB reads it out of
core: memory does not grow with the number of rows, and the order of rows or parts does not change the result.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from src.curation.cuts import create_kept
from src.curation.rules import Rule
from src.curation.score_table import (
    NOT_FINITE,
    check_input,
    connect,
    data_spec,
    differences,
    named,
    one_row,
    open_scores,
    read_manifest,
)
from src.curation.sources import SourceLosses, source_losses
from src.dataset.writers import write_subset
from src.errors import JobError

BATCH_ROWS = 8192


@dataclass(frozen=True)
class Selection:
    """What a rule kept: ``pairs = ok + errors``, ``kept`` of the ``ok``; ``cut`` is the lowest score kept.

    ``losses`` are the sources that the rule wiped out or nearly so. With ``nan: drop`` a pair whose score is not a
    finite number counts among the errors.
    """

    path: Path
    pairs: int
    ok: int
    errors: int
    kept: int
    cut: float
    losses: SourceLosses

    def __str__(self) -> str:
        share = f"{self.kept / self.ok:.1%}"
        return (
            f"{self.ok:,} ok + {self.errors:,} errors = {self.pairs:,} pairs; "
            f"kept {self.kept:,} ({share} of ok), all with score >= {self.cut:.4g}"
        )


def select_subset(scores_dir: str | Path, output_dir: str | Path, rule: Rule) -> Selection:
    """Writes ``subset_ids.parquet`` and ``rule.yaml`` into ``output_dir``.

    ``subset_ids.parquet`` has the columns id, row, text_index, score, sorted by id; its metadata entry ``rule`` is
    the rule with its counts as JSON, ``scores_dir`` the way from it to its score table. Pairs with equal values at
    the cut are taken in the order of their ids.

    Raises:
        JobError: no finished score table, no pair with a score, a value that is not a finite number (unless the rule
            says ``nan: drop``), a bad ``scores_from``, or a rule that keeps nothing.
    """
    _check_measured(scores_dir, rule)
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    with open_scores(scores_dir, spill_dir=output) as db:
        pairs, ok = _count(db, rule)
        create_kept(db, rule)
        db.execute(
            """CREATE TABLE by_source AS SELECT coalesce(source, '') AS source, sum(ok)::BIGINT AS ok,
            sum(kept)::BIGINT AS kept, min(lowest) AS lowest FROM (
                SELECT source, count(*) AS ok, 0 AS kept, NULL AS lowest FROM scores WHERE status = 'ok' GROUP BY source
                UNION ALL SELECT source, 0, count(*), min(score) FROM kept GROUP BY source) GROUP BY 1"""
        )
        kept, cut = one_row(db, "SELECT sum(kept)::BIGINT, min(lowest) FROM by_source")
        if not kept:
            (highest,) = one_row(db, "SELECT max(score) FROM scores WHERE status = 'ok'")
            by_score = rule.threshold is not None and rule.is_plain
            raise JobError(
                f"{rule.describe()} keeps nothing" + (f": the highest score is {highest:g}" if by_score else "")
            )
        counts = {"pairs": pairs, "ok": ok, "errors": pairs - ok, "kept": kept, "cut": cut}
        facts = {"fraction": rule.fraction, "threshold": rule.threshold, **rule.given(), "ties": "id", **counts}
        losses = source_losses(db, kept / ok)
        partial, target = output / ".subset_ids.parquet.partial", output / "subset_ids.parquet"
        db.execute(
            """COPY (SELECT id, row, text_index, score FROM kept ORDER BY id, row, text_index)
            TO ? (FORMAT parquet, COMPRESSION zstd, KV_METADATA {rule: ?, scores_dir: ?})""",
            [str(partial), json.dumps(facts), os.path.relpath(scores_dir, output)],
        )
    partial.replace(target)
    (output / "rule.yaml").write_text(OmegaConf.to_yaml(facts), encoding="utf-8")
    return Selection(target, **counts, losses=losses)


def write_kept(scores_dir: str | Path, subset: Path, output_dir: str | Path) -> Path:
    """The kept rows of the scored data in their own format with a score column; path of the written file.

    Raises:
        JobError: the data has changed since it was scored, or as ``write_subset``.
    """
    manifest = read_manifest(scores_dir)
    spec = data_spec(manifest)
    check_input(manifest, spec)
    return write_subset(spec, kept_rows(subset), output_dir)


def kept_rows(subset: Path) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """(row, [(text_index, score), ...]) for each kept record, in rising row order, streaming."""
    with connect(spill_dir=subset.parent) as db:
        db.read_parquet(str(subset)).create_view("kept")
        reader = db.sql("SELECT row, text_index, score FROM kept ORDER BY row, text_index").to_arrow_reader(BATCH_ROWS)
        triples = (t for batch in reader for t in zip(*(c.to_pylist() for c in batch.columns), strict=True))
        for row, group in groupby(triples, key=itemgetter(0)):
            yield row, [(text_index, score) for _, text_index, score in group]


def subset_file(path: str | Path) -> Path:
    """A ``subset_ids.parquet``, or the one in a folder. Raises JobError where there is none."""
    subset = Path(path, "subset_ids.parquet") if Path(path).is_dir() else Path(path)
    if not subset.is_file():
        raise JobError(f"no selection: {subset} does not exist; run select_subset.py first")
    return subset


def read_facts(subset: str | Path) -> dict[str, Any]:
    """The rule of a ``subset_ids.parquet`` with its counts: the keys of ``rule.yaml``.

    Raises:
        JobError: a file of other making.
    """
    return json.loads(_metadata(Path(subset))[b"rule"])


def scores_of(subset: str | Path) -> Path | None:
    """The folder of the score table that ``subset`` was cut from; None where an older file does not say."""
    way = _metadata(Path(subset)).get(b"scores_dir")
    return Path(os.path.normpath(Path(subset).parent / way.decode())) if way else None


def rule_of(facts: dict[str, Any]) -> Rule:
    """The rule in the facts of a selection."""
    return Rule.from_keys({key: value for key, value in facts.items() if key in Rule.__dataclass_fields__})


def _check_measured(scores_dir: str | Path, rule: Rule) -> None:
    """Raise JobError if a file of measures that the rule reads is of other data than was scored."""
    for inner in (*(rule.all or ()), *(rule.any or ())):
        _check_measured(scores_dir, inner)
    try:
        metadata = pq.read_schema(rule.scores_from).metadata or {} if rule.scores_from else {}
    except (OSError, pa.ArrowException):
        return  # what is wrong with it is said where it is read
    if not {b"measures", b"input"} <= metadata.keys():
        return  # made elsewhere
    measured, scored = json.loads(metadata[b"input"]), read_manifest(scores_dir).get("input", {})
    if changed := list(differences(measured, scored, "input.")):
        raise JobError(
            f"{rule.scores_from} measured other data than {scores_dir} scored: {named(changed)}. Measure it again"
        )


def _metadata(subset: Path) -> dict[bytes, bytes]:
    try:
        metadata = pq.read_schema(subset).metadata or {}
        json.loads(metadata[b"rule"])
    except (OSError, KeyError, ValueError) as error:
        raise JobError(f"{subset} is not a subset written by select_subset: {error}") from error
    return metadata


def _count(db: duckdb.DuckDBPyConnection, rule: Rule) -> tuple[int, int]:
    """Pairs, and pairs with a score; refuses a table in which the rule cannot decide."""
    pairs, ok, not_finite = one_row(
        db,
        """SELECT count(*), count(*) FILTER (status = 'ok'), min(id) FILTER (status = ?) FROM scores""",
        [NOT_FINITE],
    )
    if not_finite is not None and rule.nan == "refuse":
        raise JobError(
            f"the score of {not_finite} is not a finite number, though its status is ok; nan=drop leaves it out"
        )
    if not ok:
        kinds = db.execute("SELECT status, count(*) FROM scores GROUP BY 1 ORDER BY 2 DESC, 1").fetchall()
        raise JobError(f"no pair has a score: {', '.join(f'{n} {kind}' for kind, n in kinds) or 'no rows'}")
    return pairs, ok
