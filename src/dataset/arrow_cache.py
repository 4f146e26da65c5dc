"""A checked data set as one memory-mapped Arrow table, built once: read at random, nothing of it held in memory."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from datasets import Dataset

from src.dataset.ahead import ahead
from src.errors import RecordError

TABLE, COUNTS, ERRORS = "table.arrow", "counts.json", "errors.jsonl"
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_BATCH = 256  # rows written at a time
T = TypeVar("T")


def is_built(folder: Path) -> bool:
    """Whether ``folder`` holds a whole table."""
    return (folder / COUNTS).exists()


def build_table(
    folder: Path,
    schema: pa.Schema,
    items: Iterable[tuple[str, dict[str, Any] | RecordError]],
    counts: Callable[[], Any],
) -> None:
    """Write the rows among ``items`` as a table and the errors as ``errors.jsonl``, each with its source.

    Args:
        counts: what is to be remembered of the items once all are read, as JSON.

    The folder appears under its name when all of it is written, so that several jobs may build the same one.
    """
    partial = folder.with_name(f"{folder.name}.{os.uname().nodename}-{os.getpid()}.part")
    partial.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    try:
        with (
            pa.ipc.new_stream(str(partial / TABLE), schema) as writer,
            (partial / ERRORS).open("w", encoding="utf-8") as log,
        ):
            for source, item in items:
                if isinstance(item, RecordError):
                    log.write(json.dumps({"source": source, "kind": item.kind, "error": str(item)}) + "\n")
                    continue
                rows.append(item)
                if len(rows) == _BATCH:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
                    rows.clear()
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
        (partial / COUNTS).write_text(json.dumps(counts()), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # an older one; a reader that has it open keeps it
        try:
            partial.rename(folder)
        except OSError:
            if not is_built(folder):  # else another job was a little quicker
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_table(folder: Path) -> tuple[Dataset, Any]:
    """The table, memory-mapped, and its counts."""
    return Dataset.from_file(str(folder / TABLE)), json.loads((folder / COUNTS).read_text(encoding="utf-8"))


def image_entry(image: Any) -> dict[str, Any]:
    """An image source as an entry of type ``IMAGE``: bytes are stored, a path stays a path."""
    if isinstance(image, bytes):
        return {"bytes": image, "path": None}
    if isinstance(image, dict):
        return {"bytes": image.get("bytes"), "path": image.get("path")}
    return {"bytes": None, "path": str(image)}


def checked(items: Iterable[T | RecordError], check: Callable[[Any], None], workers: int) -> Iterator[T | RecordError]:
    """The items in order, those that ``check`` refuses as RecordErrors with their ``id`` in front.

    ``workers`` threads look at a few dozen items at a time.
    """

    def look(item: T | RecordError) -> T | RecordError:
        if not isinstance(item, RecordError):
            try:
                check(item)
            except RecordError as error:
                return RecordError(error.kind, f"{getattr(item, 'id', '')}: {error}")
        return item

    for _, looked in ahead(items, look, workers, 16 * workers):
        yield looked.result()
