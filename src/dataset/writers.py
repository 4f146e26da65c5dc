"""Write the kept part of a data set in the data set's own format, with its scores."""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from src.dataset import rows
from src.dataset.spec import DataSpec, Layout, inspect
from src.errors import JobError, RecordError

Scores = list[tuple[int, float]]  # (number of the caption, score)
Kept = Iterable[tuple[int, Scores]]  # (row, the scores of its kept captions), rows rising
T = TypeVar("T")

_GROUP_ROWS = 4096
_GROUP_BYTES = 2**26


def write_subset(spec: DataSpec, kept: Kept, output_dir: str | Path) -> Path:
    """Write the kept rows to ``kept<suffix>`` in ``output_dir``, in a stream, and return its path.

    All columns are kept and ``score`` is added (``score_rs`` if the input has one, and so on). Where the caption
    is a list (Parquet, JSON), the list is cut to the kept captions, and the score is a list beside it. The file
    appears under its name only when it is complete.

    Args:
        spec: the data set.
        kept: ``(row, [(text index, score), ...])`` in strictly rising row order; one entry where the record has
            one text or a conversation.
        output_dir: made if missing.

    Raises:
        JobError: as ``inspect``; the output would replace the input; a kept row is not in the input or cannot be
            read.
        ValueError: rows do not rise.
    """
    layout = inspect(spec)
    target = Path(output_dir) / f"kept{layout.suffix}"
    if target.exists() and target.samefile(layout.path):
        raise JobError(f"the kept data would replace the input {layout.path}; choose another output folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        match layout.suffix:
            case ".parquet":
                _write_parquet(layout, spec.text_column, kept, partial)
            case ".json" | ".jsonl":
                _write_json(layout, spec.text_column, kept, partial)
            case _:
                _write_csv(layout, kept, partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _pick(items: Iterator[T | RecordError], kept: Kept, path: Path) -> Iterator[tuple[T, Scores]]:
    """Pair the kept rows of a stream of all rows with their scores, these by rising caption number."""
    here = -1
    for row, scores in kept:
        if row <= here:
            raise ValueError(f"kept rows must rise: {row} after {here}")
        item = next(islice(items, row - here - 1, None), None)
        if item is None or isinstance(item, RecordError):
            raise JobError(f"row {row} cannot be kept: {item or 'no such row'}. Has {path} changed since scoring?")
        here = row
        yield item, [(k, float(score)) for k, score in sorted(scores)]


def _score_name(taken: Iterable[str]) -> str:
    names = set(taken)
    name = "score"
    while name in names:
        name += "_rs"
    return name


def _write_csv(layout: Layout, kept: Kept, target: Path) -> None:
    delimiter = rows.DELIMITERS[layout.suffix]
    table = rows.csv_lists(layout.path, delimiter)
    header = rows.csv_header(layout.path, delimiter)
    with target.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        # The module quotes a lone \r only if it is part of the line end; the file's line end is \n all the same.
        lines = SimpleNamespace(write=lambda line: file.write(line.removesuffix("\r\n") + "\n"))
        writer = csv.writer(lines, delimiter=delimiter, lineterminator="\r\n")
        writer.writerow([*header, _score_name(header)])
        for row, scores in _pick(islice(table, 1, None), kept, layout.path):
            writer.writerow([*row, repr(scores[0][1])])


def _write_json(layout: Layout, text_column: str, kept: Kept, target: Path) -> None:
    name = _score_name(key for row in rows.iter_rows(layout.path) if isinstance(row, dict) for key in row)
    lines = layout.suffix == ".jsonl"
    with target.open("w", encoding="utf-8", newline="") as file:
        file.write("" if lines else "[")
        between = "" if lines else "\n"
        for row, scores in _pick(rows.iter_rows(layout.path), kept, layout.path):
            captions = None if layout.conversations else row.get(text_column)
            added: dict[str, Any] = {name: scores[0][1]}
            if isinstance(captions, list):
                added = {text_column: [captions[k] for k, _ in scores], name: [score for _, score in scores]}
            text = json.dumps(row | added, ensure_ascii=False)
            # Lone surrogates in columns that are not used can be written only as escapes.
            file.write(between + (text if rows.is_utf8(text) else json.dumps(row | added)))
            file.write("\n" if lines else "")
            between = "" if lines else ",\n"
        file.write("" if lines else "\n]\n")


def _write_parquet(layout: Layout, text_column: str, kept: Kept, target: Path) -> None:
    with rows.parquet_file(layout.path) as source:
        schema = _with_score(source.schema_arrow, text_column)
        numbered = enumerate(rows.parquet_batches(source))
        places = ((number, batch, k) for number, batch in numbered for k in range(batch.num_rows))
        held: list[pa.RecordBatch] = []
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for _, group in groupby(_pick(places, kept, layout.path), key=lambda item: item[0][0]):
                members = list(group)
                (_, batch, _), _ = members[0]
                chosen = batch.take(pa.array([k for (_, _, k), _ in members]))
                held.append(_scored(chosen, [scores for _, scores in members], schema, text_column))
                if sum(b.num_rows for b in held) >= _GROUP_ROWS or sum(b.nbytes for b in held) >= _GROUP_BYTES:
                    writer.write_table(pa.Table.from_batches(held, schema))
                    held = []
            if held:
                writer.write_table(pa.Table.from_batches(held, schema))


def _scored(batch: pa.RecordBatch, kept: list[Scores], schema: pa.Schema, text_column: str) -> pa.RecordBatch:
    columns = list(batch.columns)
    score: list[Any]
    if pa.types.is_list(schema.field(len(schema) - 1).type):
        place = schema.get_field_index(text_column)
        lists = zip(columns[place].to_pylist(), kept, strict=True)
        cut = [[captions[n] for n, _ in scores] for captions, scores in lists]
        columns[place] = pa.array(cut, schema.field(place).type)
        score = [[value for _, value in scores] for scores in kept]
    else:
        score = [scores[0][1] for scores in kept]
    return pa.record_batch([*columns, pa.array(score, schema.field(len(schema) - 1).type)], schema=schema)


def _with_score(schema: pa.Schema, text_column: str) -> pa.Schema:
    """The schema with a score column at its end, parallel to the captions where they are lists."""
    place = schema.get_field_index(text_column)
    kind = schema.field(place).type
    several = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if pa.types.is_fixed_size_list(kind):
        schema = schema.set(place, schema.field(place).with_type(pa.list_(kind.value_type)))
    name = _score_name(schema.names)
    schema = schema.append(pa.field(name, pa.list_(pa.float64()) if several else pa.float64()))
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features")
    if features is None:
        return schema
    # The datasets library refuses a file whose columns are not the ones listed in this entry.
    value = {"dtype": "float64", "_type": "Value"}
    features[name] = {"feature": value, "_type": "List"} if several else value
    if several:
        features[text_column] = {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}
    entry = json.dumps({"info": {"features": features}}).encode()
    return schema.with_metadata({**schema.metadata, b"huggingface": entry})
