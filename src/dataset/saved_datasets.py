"""Folders that the ``datasets`` library saved with ``save_to_disk``: memory-mapped rows, and the files to write one."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from src.errors import JobError

if TYPE_CHECKING:
    from datasets import Dataset

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
SHARD_BYTES = 500 * 10**6  # at which a data file is closed, as the library does

# What the library wants to find in the state of a data set that is new.
_NEW_STATE: dict[str, Any] = {"_format_type": None, "_format_kwargs": {}, "_output_all_columns": False, "_split": None}


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is one data set of the library.

    Raises:
        JobError: it is a dictionary of splits, of which one must be chosen.
    """
    if (folder / SPLITS).is_file():
        splits = sorted(str(state.parent) for state in folder.glob(f"*/{STATE}"))
        raise JobError(f"{folder} holds several splits; choose one of them by its path: {', '.join(splits)}")
    return (folder / STATE).is_file() and (folder / INFO).is_file()


def saved_files(folder: Path) -> list[Path]:
    """The files that the data set consists of, without those that the library caches beside them."""
    return [folder / STATE, folder / INFO, *(folder / name for name in _data_files(_read_json(folder / STATE)))]


def saved_schema(folder: Path) -> pa.Schema:
    """Arrow schema with the library's features in its metadata; images are ``{bytes, path}``."""
    return _load(folder).features.arrow_schema


def count_saved(folder: Path) -> int:
    """Number of rows."""
    return len(_load(folder))


def saved_batches(
    folder: Path, size: int, columns: Sequence[str] | None = None, start: int = 0
) -> Iterator[pa.RecordBatch]:
    """Yield batches of about ``size`` bytes from row ``start`` on, images not decoded.

    Raises:
        JobError: the folder is no data set that the library can load, or its data are damaged.
    """
    data = _load(folder)
    rows = max(1, min(4096, size * len(data) // max(data.data.nbytes, 1)))
    if columns is not None:
        data = data.select_columns([name for name in data.column_names if name in columns] or data.column_names[:1])
    try:
        if start < len(data):
            for table in data.select(range(start, len(data))).with_format("arrow").iter(rows):
                yield from table.to_batches()
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"the data in {folder} are damaged: {error}") from error


def write_saved(source: Path | None, schema: pa.Schema, tables: Iterator[pa.Table], target: Path) -> None:
    """Write tables as a folder that ``datasets.load_from_disk`` loads, described as the folder ``source`` is, if any.

    Args:
        schema: of the tables, with the library's features in its metadata.
        target: the new folder.
    """
    target.mkdir()
    names: list[str] = []
    more = next(tables, None)
    while more is not None or not names:
        names.append(f"data-{len(names):05d}.arrow")
        with (target / names[-1]).open("wb") as file, pa.ipc.new_stream(file, schema) as stream:
            while more is not None:
                stream.write_table(more)
                more = next(tables, None)
                if file.tell() >= SHARD_BYTES:
                    break
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    given, state = (_read_json(source / INFO), _read_json(source / STATE)) if source else ({}, _NEW_STATE)
    # Sizes and splits are those of the source.
    gone = ("splits", "dataset_size", "download_size", "size_in_bytes", "download_checksums", "post_processing_size")
    info = {key: value for key, value in given.items() if key not in gone}
    _write_json(target / INFO, info | {"features": features})
    kept = hashlib.blake2b(f"{state.get('_fingerprint')}".encode(), digest_size=8)
    for name in names:
        with (target / name).open("rb") as written:
            while block := written.read(2**20):
                kept.update(block)
    fresh = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": kept.hexdigest(),
        "_format_columns": None,
    }
    _write_json(target / STATE, {key: value for key, value in state.items() if key != "_indices_data_files"} | fresh)


def _load(folder: Path) -> "Dataset":
    import datasets  # slow to import, and seldom needed

    try:
        data = datasets.load_from_disk(str(folder), keep_in_memory=False)
    except Exception as error:  # of a damaged folder the library raises nearly anything
        raise JobError(f"{folder} cannot be loaded by the datasets library: {error}") from error
    assert isinstance(data, datasets.Dataset)
    return data


def _data_files(state: dict[str, Any]) -> list[str]:
    return [entry["filename"] for key in ("_data_files", "_indices_data_files") for entry in state.get(key) or []]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{path} is not readable as JSON: {error}") from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
