"""The unfinished half of a run of measures: parts of the table of records, and the settings that made them.

A folder has ``settings.json``, all that decides the values, and ``part-<first row>.parquet`` for each stretch of
records that has been measured, both written to a temporary name, synced and renamed. A part has a row for each record:
its pairs as a list, what became of its image, the perceptual hash as a number, and the features as bytes of float16.
Whatever else lies in the folder has the ending ``.partial`` and is of no use to a later run.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from src.curation.measures import Measured
from src.curation.score_table import NOT_FINITE, differences, named
from src.curation.shards import is_whole, write_shard
from src.dataset.writers import remove, sync
from src.errors import JobError

PART_ROWS = 2048  # records that a killed run measures again at most, rounded up to whole batches

_PAIR = pa.struct(
    {"id": pa.string(), "clip_score": pa.float64(), "language": pa.string(), "language_probability": pa.float64()}
)
SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "pairs": pa.list_(pa.field("element", _PAIR)),  # as Parquet calls it: what is read must have the same schema
        "image": pa.string(),  # ok, not_finite, the kind of error with which it did not open; null: none was looked at
        "image_entropy": pa.float64(),
        "phash": pa.uint64(),
        "feature": pa.binary(),
    }
)

log = logging.getLogger(__name__)


class Parts:
    """The parts of one run in their folder.

    Args:
        records: rows of the data set.
        batch_size: records that are measured together. A part is the least number of whole batches with
            ``PART_ROWS`` records, so that no value depends on where an earlier run was killed.
    """

    def __init__(self, folder: Path, records: int, batch_size: int):
        self.folder, self.records = folder, records
        self.size = -(-PART_ROWS // batch_size) * batch_size

    def claim(self, settings: dict[str, Any]) -> None:
        """Keep what a run with the same settings has left in the folder; clear what any other has, and say why."""
        settings = json.loads(json.dumps(settings | {"records": self.records, "part_rows": self.size}))
        path = self.folder / "settings.json"
        earlier = _read_settings(path)
        if earlier == settings:
            for torn in self.folder.glob("*.partial"):
                torn.unlink()
            return
        if any(self.folder.glob("part-*.parquet")):
            changed = "settings.json does not read" if earlier is None else named(list(differences(earlier, settings)))
            log.warning("%s has parts of another run, measuring begins anew; changed: %s", self.folder, changed)
        remove(self.folder)
        self.folder.mkdir()
        # last, in an empty folder: whatever parts are beside it were made with it
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        sync(partial)
        partial.replace(path)

    def missing(self) -> list[int]:
        """First rows of the parts that are not there or damaged, in rising order."""
        return [start for start in range(0, self.records, self.size) if not is_whole(self._path(start), "measured")]

    def first_row(self, row: int) -> int:
        """The row with which the part of this row begins."""
        return row - row % self.size

    def rows_of(self, start: int) -> int:
        """Records in the part that begins with row ``start``."""
        return min(self.size, self.records - start)

    def write(self, start: int, rows: list[dict[str, Any]]) -> None:
        """Write a part from its rows, as :func:`part_row` makes them. Raises JobError when the disk is full."""
        write_shard(self._path(start), rows, SCHEMA)

    def read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of every part, in the order of rows.

        Raises:
            JobError: a part does not read.
        """
        for start in range(0, self.records, self.size):
            path = self._path(start)
            try:
                table = pq.ParquetFile(path, page_checksum_verification=True).read(list(columns))
            except (OSError, pa.ArrowException) as error:
                raise JobError(f"{path} does not read; run again to make it anew: {error}") from error
            yield from table.combine_chunks().to_batches()

    def _path(self, start: int) -> Path:
        return self.folder / f"part-{start:010d}.parquet"


def part_row(measured: Measured) -> dict[str, Any]:
    """What a part keeps of a record."""
    pairs = []
    for name, language, cosine in zip(measured.ids, measured.languages, measured.clip_scores, strict=True):
        code, probability = language or (None, None)
        pairs.append({"id": name, "clip_score": cosine, "language": code, "language_probability": probability})
    image = "ok" if measured.opened else None
    if measured.error:
        image = measured.error.kind
    elif measured.not_finite:
        image = NOT_FINITE
    return {
        "row": measured.record.row,
        "pairs": pairs,
        "image": image,
        "image_entropy": measured.entropy,
        "phash": measured.phash,
        "feature": None if measured.feature is None else measured.feature.tobytes(),
    }


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None
