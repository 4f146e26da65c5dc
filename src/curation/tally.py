"""What a selection kept of each value of a column, beside what chance would have kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from src.curation.score_table import data_spec, open_scores, read_manifest
from src.dataset.files import find_files
from src.errors import JobError


@dataclass(frozen=True)
class Tally:
    """Pairs with one value: how many there are, how many were kept, and how many a random draw of that size keeps."""

    value: str
    pairs: int
    kept: int
    random: int


def tally(scores_dir: str | Path, subset: Path, column: str, seed: int = 0) -> list[Tally]:
    """Count scored pairs by the value their record has in ``column`` of the scored data set, most frequent first.

    Args:
        subset: ``subset_ids.parquet`` of a selection from this score table.
        seed: of the random draw of as many pairs as were kept.

    Raises:
        JobError: no such column, or the data set has moved.
    """
    spec = data_spec(read_manifest(scores_dir))
    values = pa.array(column_values(spec.path, column), pa.string())
    valued = pa.table({"row": np.arange(len(values)), "value": values})
    with open_scores(scores_dir, spill_dir=Path(subset).parent) as db:
        db.register("valued", valued)
        db.read_parquet(str(subset)).create_view("subset")
        counts = db.execute(
            """WITH pairs AS (
                SELECT coalesce(value, '') AS value, s.id IS NOT NULL AS kept,
                    row_number() OVER (ORDER BY md5(concat(scores.id, '#', ?::VARCHAR)), scores.id)
                        <= (SELECT count(*) FROM subset) AS drawn
                FROM scores JOIN valued USING (row) LEFT JOIN subset s USING (row, text_index) WHERE status = 'ok')
            SELECT value, count(*), count(*) FILTER (kept), count(*) FILTER (drawn)
            FROM pairs GROUP BY 1 ORDER BY 2 DESC, 1""",
            [seed],
        ).fetchall()
    return [Tally(*row) for row in counts]


def column_values(path: str, column: str) -> Iterator[str | None]:
    """What each row of a data set has in a column, as text. Raises JobError at the end if no row has the column."""
    found = False
    for *_, row in find_files(path).iter_rows([column]):
        value = row.get(column) if isinstance(row, dict) else None
        found = found or (isinstance(row, dict) and column in row)
        yield None if value is None else str(value).encode("utf-8", "replace").decode()
    if not found:
        raise JobError(f"{path} has no column {column!r}")
