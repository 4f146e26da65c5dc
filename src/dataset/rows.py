"""Read the rows of one data file of any format, one at a time, whatever the size of the file.

A row that cannot be read comes out as a RecordError in its place, so that row numbers never shift.
"""

import csv
import json
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from src.dataset.json_stream import JsonList
from src.dataset.saved_datasets import count_saved, is_saved_dataset, saved_batches, saved_schema
from src.dataset.tars import samples
from src.errors import JobError, RecordError

Row = dict[str, Any] | RecordError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".json", ".jsonl", ".parquet")
FORMATS = (*SUFFIXES, ".tar")
SAVED = "/"  # stands for the suffix of a folder saved by the datasets library

MAX_CSV_FIELD = 2**20  # characters; bounds what a quote that is never closed can swallow
BATCH_BYTES = 2**23  # of decoded Parquet held at a time
KEY_ROWS = 64  # JSON and tars have no header: their columns are the keys of that many first objects


def table_suffix(path: Path) -> str:
    """The format of a data file by its name: one of ``FORMATS``, or ``SAVED`` for a folder of the datasets library.

    Raises:
        JobError: no such file, an empty one, or a format that is not supported.
    """
    if not path.exists():
        raise JobError(f"no such data file: {path}")
    if path.is_dir() and is_saved_dataset(path):
        return SAVED
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in FORMATS:
        raise JobError(f"{path} is not a data file of a supported format ({', '.join(FORMATS)})")
    if path.stat().st_size == 0:
        raise JobError(f"{path} is empty")
    return suffix


def column_names(path: Path, enough: Collection[str] | None = None) -> list[str]:
    """Names of the columns: the header, the schema, or the keys met in the first objects of JSON or a tar.

    With ``enough``, the look at first objects ends as soon as all of these have been met.
    """
    suffix = table_suffix(path)
    if suffix in DELIMITERS:
        return csv_header(path, DELIMITERS[suffix])
    schema = arrow_schema(path)
    if schema is not None:
        return list(schema.names)
    keys: Iterator[Iterable[str]] = (row if isinstance(row, dict) else () for row in iter_rows(path, columns=[]))
    if suffix == ".tar":
        keys = (sample.columns() for sample in samples(path))
    names: dict[str, None] = {}
    for found in islice(keys, KEY_ROWS):
        names |= dict.fromkeys(found)
        if enough is not None and names.keys() >= set(enough):
            break
    return list(names)


def arrow_schema(path: Path) -> pa.Schema | None:
    """The schema of a Parquet file or of a folder saved by the datasets library; None for other formats."""
    match table_suffix(path):
        case ".parquet":
            with parquet_file(path) as file:
                return file.schema_arrow
        case suffix:
            return saved_schema(path) if suffix == SAVED else None


def iter_rows(path: Path, columns: Sequence[str] | None = None, start: int = 0) -> Iterator[Row]:
    """Yield the rows from number ``start`` (0-based) on as ``{column: value}``.

    ``columns`` spares Parquet, saved data sets and tars the reading of others; the other formats give all. In their
    rows, a string that is not UTF-8 is replaced by a RecordError as the value of its column. Undecodable bytes of a
    CSV or JSON file come out as lone surrogates (Python's ``surrogateescape``).

    Raises:
        JobError: the file cannot be read on from some point.
    """
    match table_suffix(path):
        case ".parquet":
            return _parquet_rows(path, columns, start)
        case ".jsonl":
            return _jsonl_rows(path, start)
        case ".json":
            return islice(_json_rows(path), start, None)
        case ".tar":
            return (sample.row(columns) for sample in islice(samples(path), start, None))
        case suffix if suffix == SAVED:
            return chain.from_iterable(map(_batch_rows, saved_batches(path, BATCH_BYTES, columns, start)))
        case suffix:
            return islice(_csv_rows(path, DELIMITERS[suffix]), start, None)


def count_rows(path: Path) -> int:
    """Number of rows, unreadable ones included. Raises JobError when a JSON list is broken."""
    match table_suffix(path):
        case ".parquet":
            with parquet_file(path) as file:
                return file.metadata.num_rows
        case ".jsonl":
            with path.open("rb") as lines:
                return sum(1 for line in lines if line.strip())
        case ".tar":
            return sum(1 for _ in samples(path))
        case suffix if suffix == SAVED:
            return count_saved(path)
        case _:
            return sum(1 for _ in iter_rows(path))


def csv_header(path: Path, delimiter: str) -> list[str]:
    """The first row of a CSV file. Raises JobError when there is none or it is not UTF-8."""
    header = next(csv_lists(path, delimiter), None)
    if not isinstance(header, list):
        raise JobError(f"{path} has no header row" + (f": {header}" if header else ""))
    if not is_utf8("".join(header)):
        raise JobError(f"{path} is not UTF-8 text")
    return header


def csv_lists(path: Path, delimiter: str) -> Iterator[list[str] | RecordError]:
    """Yield the header, then every row, as lists; a row of another length than the header is a RecordError.

    Empty lines are no rows. When quotes do not match, one line is given up and reading goes on with the next.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CSV_FIELD))
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        again: deque[str] = deque()
        taken: list[str] = []

        def lines() -> Iterator[str]:
            while line := again.popleft() if again else file.readline():
                taken.append(line)
                yield line

        reader = csv.reader(lines(), delimiter=delimiter, strict=True)
        width, number = 0, 1
        while True:
            taken.clear()
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield RecordError("bad_record", f"line {number}: {error}")
                again.extendleft(reversed(taken[1:]))
                reader = csv.reader(lines(), delimiter=delimiter, strict=True)
                number += 1
                continue
            if row is None:
                return
            width = width or len(row)
            if row and len(row) == width:
                yield row
            elif row:
                yield RecordError("bad_record", f"line {number}: {len(row)} fields; the header has {width}")
            number += len(taken)


def parquet_file(path: Path) -> pq.ParquetFile:
    """Open a Parquet file. Raises JobError when it is none."""
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"{path} is not a readable Parquet file: {error}") from error


def parquet_batches(
    file: pq.ParquetFile, columns: Sequence[str] | None = None, first_group: int = 0
) -> Iterator[pa.RecordBatch]:
    """Yield batches of about ``BATCH_BYTES`` from row group ``first_group`` on. Raises JobError on damaged data."""
    try:
        for number in range(first_group, file.num_row_groups):  # all groups at once would hold a reader of each
            group = file.metadata.row_group(number)
            chunks = (group.column(k) for k in range(group.num_columns))
            wanted = (chunk for chunk in chunks if columns is None or chunk.path_in_schema.split(".")[0] in columns)
            size = sum(chunk.total_uncompressed_size for chunk in wanted)
            rows = max(1, min(4096, BATCH_BYTES * group.num_rows // max(size, 1)))
            yield from file.iter_batches(rows, row_groups=[number], columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"the Parquet file is damaged: {error}") from error


def is_utf8(text: str) -> bool:
    """False when the text has lone surrogates, which stand for undecodable bytes and no program can write."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    header = csv_header(path, delimiter)
    for row in islice(csv_lists(path, delimiter), 1, None):
        yield row if isinstance(row, RecordError) else dict(zip(header, row, strict=True))


def _jsonl_rows(path: Path, start: int) -> Iterator[Row]:
    with path.open("rb") as file:
        numbered = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        for number, line in islice(numbered, start, None):
            try:
                yield _as_row(json.loads(line.decode("utf-8-sig")))
            except (ValueError, RecursionError) as error:
                yield RecordError("bad_record", f"line {number} is not JSON: {error}")


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from map(_as_row, JsonList(file, str(path)))


def _as_row(value: Any) -> Row:
    if isinstance(value, dict):
        return value
    return RecordError("bad_record", f"a JSON object is expected, not {type(value).__name__}")


def _parquet_rows(path: Path, columns: Sequence[str] | None, start: int) -> Iterator[Row]:
    with parquet_file(path) as file:
        group, skip = 0, start
        while group < file.num_row_groups and skip >= file.metadata.row_group(group).num_rows:
            skip -= file.metadata.row_group(group).num_rows
            group += 1
        for batch in parquet_batches(file, columns, group):
            yield from _batch_rows(batch.slice(min(skip, batch.num_rows)))
            skip = max(0, skip - batch.num_rows)


def _batch_rows(batch: pa.RecordBatch) -> Iterator[Row]:
    for k in range(batch.num_rows):
        yield {name: _cell(values[k]) for name, values in zip(batch.schema.names, batch.columns, strict=True)}


def _cell(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return RecordError("bad_record", f"not UTF-8: {error}")
