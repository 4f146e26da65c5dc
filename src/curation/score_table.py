"""The score table as its readers see it: a DuckDB view, out of core, beside the manifest of its scoring job."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import duckdb

from src.dataset.images import ImageLimits
from src.dataset.records import DataSpec, input_fingerprint
from src.errors import JobError

MEMORY_LIMIT = "1GB"  # above it DuckDB spills to the output folder
_NAMED_CHANGES = 8  # of thousands of files that may have changed
NOT_FINITE = "not_finite"  # the status that a pair gets here whose status is ok and whose score is no finite number


@contextmanager
def open_scores(scores_dir: str | Path, spill_dir: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection with the score table as the view ``scores``; its errors become ``JobError``.

    In the view a pair with status ``ok`` has a finite score: NaN, infinite or no score reads as ``not_finite``.
    """
    parts = sorted(str(part) for part in Path(scores_dir, "scores").glob("*.parquet"))
    if not parts:
        raise JobError(f"no score table: {Path(scores_dir, 'scores')} has no .parquet file")
    check_finished(scores_dir)
    try:
        with connect(spill_dir) as db:
            db.read_parquet(parts).create_view("score_parts")
            db.execute(
                f"""CREATE VIEW scores AS SELECT * REPLACE (CASE WHEN status = 'ok'
                AND NOT coalesce(isfinite(score), false) THEN '{NOT_FINITE}' ELSE status END AS status)
                FROM score_parts"""  # noqa: S608, all of it is ours
            )
            yield db
    except duckdb.Error as error:
        raise JobError(f"cannot use the score table in {scores_dir}: {str(error).splitlines()[0]}") from error


def check_finished(scores_dir: str | Path) -> None:
    """Raise JobError unless the scoring job of this folder has come to its end."""
    if not Path(scores_dir, "summary.json").is_file():
        raise JobError(f"{scores_dir} has no summary.json: its scoring job has not finished, run it again")


@contextmanager
def connect(spill_dir: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection of bounded memory whose files lie in a folder of ``spill_dir`` that goes with it."""
    with (
        tempfile.TemporaryDirectory(prefix=".spill-", dir=spill_dir) as spill,
        duckdb.connect(f"{spill}/work.duckdb", config={"memory_limit": MEMORY_LIMIT, "temp_directory": spill}) as db,
    ):
        yield db


def one_row(db: duckdb.DuckDBPyConnection, sql: str, values: Sequence[object] = ()) -> tuple[Any, ...]:
    """The first row of a query that always has one."""
    # all rows: a result that is not read to its end blocks what comes next on the connection
    return db.execute(sql, values).fetchall()[0]


def read_manifest(scores_dir: str | Path) -> dict[str, Any]:
    """``manifest.json`` of a scoring job: data, input, model, template, position_scheme, versions."""
    path = Path(scores_dir, "manifest.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"cannot read {path}: {error}") from error


def image_limits(manifest: dict[str, Any]) -> ImageLimits:
    """What an image may measure, as it was in scoring."""
    known = {limit.name for limit in fields(ImageLimits)}
    return ImageLimits(**{key: value for key, value in manifest.get("limits", {}).items() if key in known})


def data_spec(manifest: dict[str, Any]) -> DataSpec:
    """The description of the input that was scored."""
    try:
        return DataSpec(**manifest["data"])
    except (KeyError, TypeError) as error:
        raise JobError(f"manifest.json does not describe its data: {error}") from error


def check_input(manifest: dict[str, Any], spec: DataSpec) -> None:
    """Raise JobError if the data set is not, byte for byte, the one that the job of ``manifest`` scored.

    A manifest of other making, without ``input``, cannot tell.
    """
    if "input" not in manifest:
        return
    now = json.loads(json.dumps(input_fingerprint(spec)))
    earlier = {key: value for key, value in manifest["input"].items() if key != "records"}
    if changed := list(differences(earlier, now, "input.")):
        raise JobError(f"{spec.path} has changed since it was scored: {named(changed)}. Score it again")


def named(changed: Sequence[str]) -> str:
    """The first of what changed, in a sentence."""
    more = f"; and {len(changed) - _NAMED_CHANGES} more" if len(changed) > _NAMED_CHANGES else ""
    return "; ".join(changed[:_NAMED_CHANGES]) + more


def differences(earlier: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Each key of which two manifests have different values, with both."""
    for key in {**now, **earlier}:
        old, new = earlier.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} (was {old}, now {new})"
