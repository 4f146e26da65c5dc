"""Write kept rows of Arrow tables, Parquet files and folders of the ``datasets`` library, with a column of scores."""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from src.dataset import rows
from src.dataset.kept import Kept, Scores, pick, score_name
from src.dataset.saved_datasets import saved_batches, saved_schema, write_saved

_GROUP_ROWS = 4096
_GROUP_BYTES = 2**26


def write_parquet(path: Path, text_column: str, kept: Kept, target: Path) -> None:
    """Write the kept rows of a Parquet file to another."""
    with rows.parquet_file(path) as source:
        schema = _with_score(source.schema_arrow, text_column)
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for table in _tables(rows.parquet_batches(source), schema, text_column, kept, path):
                writer.write_table(table)


def write_dataset(folder: Path, text_column: str, kept: Kept, target: Path) -> None:
    """Write the kept rows of a folder of the ``datasets`` library to a new one."""
    schema = _with_score(saved_schema(folder), text_column)
    batches = saved_batches(folder, rows.BATCH_BYTES)
    write_saved(folder, schema, _tables(batches, schema, text_column, kept, folder), target)


def _tables(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, text_column: str, kept: Kept, path: Path
) -> Iterator[pa.Table]:
    """The kept rows in tables of about ``_GROUP_ROWS`` rows or ``_GROUP_BYTES``."""
    places = ((number, batch, k) for number, batch in enumerate(batches) for k in range(batch.num_rows))
    held: list[pa.RecordBatch] = []
    for _, group in groupby(pick(places, kept, path), key=lambda item: item[0][0]):
        members = list(group)
        (_, batch, _), _ = members[0]
        chosen = batch.take(pa.array([k for (_, _, k), _ in members]))
        held.append(_scored(chosen, [scores for _, scores in members], schema, text_column))
        if sum(b.num_rows for b in held) >= _GROUP_ROWS or sum(b.nbytes for b in held) >= _GROUP_BYTES:
            yield pa.Table.from_batches(held, schema)
            held = []
    if held:
        yield pa.Table.from_batches(held, schema)


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
    name = score_name(schema.names)
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
