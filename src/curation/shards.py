"""The parts of a score table: their columns, and how one is written so that it is never half there."""

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from src.curation.scorer import Scored
from src.dataset.records import Record
from src.errors import JobError

log = logging.getLogger(__name__)

_NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "row": pa.int64(),
        "text_index": pa.int32(),
        "score": pa.float64(),
        "status": _NAMES,
        "error": pa.string(),
        "source": pa.string(),
        "text_chars": pa.int32(),
        "width": pa.int32(),
        "height": pa.int32(),
        "template": _NAMES,
        "model": _NAMES,
        "position_scheme": _NAMES,
    }
)


def named_texts(record: Record) -> list[tuple[str, str]]:
    """(id, text) of each pair that a record stands for in the table, at least one.

    The id is ``Record.pair_id``; the text of a conversation is its answers.
    """
    texts = record.texts or ("".join(turn["content"] for turn in record.turns if turn["role"] == "assistant"),)
    return [(record.pair_id(index), text) for index, text in enumerate(texts)]


def table_rows(
    window: Sequence[Record], results: Iterator[Scored], constants: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """The rows of the table for a run of records: one for each text, or one for a record that cannot be used.

    Args:
        results: one per text of the records that can be used, in order.
        constants: columns that are the same in every row.
    """
    for record in window:
        for index, (name, text) in enumerate(named_texts(record)):
            result = Scored(error=record.error) if record.error else next(results)
            yield {
                "id": name,
                "row": record.row,
                "text_index": index,
                "score": result.score,
                "status": result.error.kind if result.error else "ok",
                "error": str(result.error) if result.error else None,
                "source": record.source,
                "text_chars": len(text),
                "width": result.width,
                "height": result.height,
                **constants,
            }


def part_path(output: Path, start: int) -> Path:
    """Where the shard that begins with row ``start`` lies."""
    return output / "scores" / f"part-{start:010d}.parquet"


def write_shard(path: Path, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> None:
    """Write a shard under a temporary name, sync it and rename it: it is there as a whole or not at all.

    Raises:
        JobError: the disk is full.
    """
    # The process in the name: after a network failure two workers may hold one shard, and the last whole one wins.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with telling_of_full_disk(path):
        try:
            with partial.open("wb") as file:
                file.write(_parquet(pa.Table.from_pylist(rows, schema=schema)))
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def telling_of_full_disk(path: Path) -> Iterator[None]:
    """Raise JobError in place of the system's error where the disk of ``path`` is full; shards written stay."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise JobError(f"disk full at {path}; all earlier shards are safe: free some space and rerun") from error


def is_whole(path: Path, made: str = "scored") -> bool:
    """Whether a shard is there and undamaged: its pages agree with their checksums, and written again it is the same.

    The second covers what has no checksum: the footer with its statistics, by which rows are passed over.

    Args:
        made: what the log says is done to a damaged one again.
    """
    try:
        content = path.read_bytes()
        same = content == _parquet(pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read())
        problem: Exception | str = "" if same else "its footer is not that of its rows"
    except FileNotFoundError:
        return False
    except (pa.ArrowException, OSError, ValueError) as error:
        problem = error
    if problem:
        log.warning("%s is damaged and will be %s again: %s", path, made, problem)
    return not problem


def _parquet(table: pa.Table) -> pa.Buffer:
    """The bytes of a shard, which its rows and pyarrow's version decide."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()
