"""Where a data set is, what its columns mean, and the checks before work on it starts."""

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from src.dataset import rows
from src.dataset.fields import CONVERSATION_KEYS
from src.dataset.files import DataFiles, find_files
from src.errors import JobError


@dataclass(frozen=True)
class DataSpec:
    """Where a data set is, and which of its columns mean what.

    Attributes:
        path: a .csv, .tsv, .json, .jsonl, .parquet or (WebDataset) .tar file; a folder of such files, or a pattern
            (``train-*.parquet``, ``shard-{000..012}.tar``), all of one format with the same columns; or a folder
            that the ``datasets`` library saved.
        image_root: folder that images are relative to and must lie in; None: the folder of the data file, the
            folder given, or the one below which the pattern matches.
        image_column: paths, or in Parquet and saved data sets ``{bytes, path}`` or binary; a list of them is
            several images. The default gives way to a column ``image`` that holds encoded images, as the image
            members of a tar do.
        text_column: a caption or a list of captions. In a tar the default gives way to the first of
            ``TAR_CAPTIONS`` that there is.
        id_column, source_column, question_column: optional further columns of text.
    """

    path: str
    image_root: str | None = None
    image_column: str = "filename"
    text_column: str = "title"
    id_column: str | None = None
    source_column: str | None = None
    question_column: str | None = None


TAR_CAPTIONS = ("txt", "caption", "text", "title")  # members or JSON keys, the most telling first


@dataclass(frozen=True)
class Layout:
    """What a look at the files settles: which they are, whether they hold conversations or images, their columns.

    Attributes:
        root: the ``root`` with which ``open_image`` is to open images of this data set: the image root given, else
            the folder of the data; paths elsewhere need an ``image_root`` that holds them.
    """

    files: DataFiles
    root: Path
    conversations: bool
    image_column: str
    text_column: str
    encoded: bool


def inspect(spec: DataSpec) -> Layout:
    """Check a data set before work on it starts.

    Raises:
        JobError: missing, empty or unsupported file, several formats, no records, unknown column, a file with other
            columns than the first, a column of a type that cannot hold what it should, missing image root.
    """
    files = find_files(spec.path)
    if spec.image_root is not None and not Path(spec.image_root).is_dir():
        raise JobError(f"no such image root: {spec.image_root}")
    first = next(files.iter_rows(columns=[]), None)
    if first is None:
        raise JobError(f"{spec.path} holds no records")
    path = files.paths[first[0]]
    expected = _look(path)
    layout = _layout(spec, files, *expected)
    for other in files.paths:
        _check_columns(other, spec, layout, path, expected)
    return layout


def _look(path: Path, enough: Collection[str] | None = None) -> tuple[list[str], pa.Schema | None]:
    """The names of the columns, as ``rows.column_names``, and the schema, if the format has one; it is read once."""
    schema = rows.arrow_schema(path)
    return (rows.column_names(path, enough) if schema is None else list(schema.names)), schema


def _layout(spec: DataSpec, files: DataFiles, present: list[str], schema: pa.Schema | None) -> Layout:
    image_column, text_column = spec.image_column, spec.text_column

    def encoded(column: str) -> bool:
        if schema is None:
            return files.suffix == ".tar"
        return column in present and _holds_bytes(schema.field(column).type)

    if image_column == DataSpec.image_column and "image" in present and encoded("image"):
        image_column = "image"
    conversations = (
        files.suffix in (".json", ".jsonl", ".tar")
        and spec.text_column == DataSpec.text_column
        and any(key in present for key in CONVERSATION_KEYS)
        and not (files.suffix == ".tar" and "txt" in present)
    )
    if files.suffix == ".tar" and text_column == DataSpec.text_column:
        text_column = next((name for name in TAR_CAPTIONS if name in present), text_column)
    root = Path(spec.image_root) if spec.image_root is not None else files.folder
    return Layout(files, root, conversations, image_column, text_column, encoded(image_column))


def _check_columns(
    path: Path, spec: DataSpec, layout: Layout, first: Path, expected: tuple[list[str], pa.Schema | None]
) -> None:
    """Refuse a file that lacks a column which is used, has one of a wrong type, or another header than the first."""
    optional = [spec.id_column, spec.source_column] + ([] if layout.conversations else [spec.question_column])
    used = [column for column in optional if column is not None]
    if not layout.conversations:
        used += [layout.image_column, layout.text_column]
    present, schema = expected if path == first else _look(path, enough=used)
    keyed = layout.files.suffix in (".json", ".jsonl", ".tar")  # whose objects need not all have the same keys
    if keyed and not present and path != first:
        return  # no objects, or none in its first rows that can be read
    for column in used:
        _require(column, present, path)
    if layout.conversations and not any(key in present for key in CONVERSATION_KEYS):
        raise JobError(f"{path} holds no conversations, but {first} does")
    if not keyed and (differing := sorted({*expected[0]} ^ {*present})):
        raise JobError(f"{path} has not the same columns as {first}: {', '.join(map(repr, differing))} differ")
    if schema is not None:
        _require_type(schema, layout.text_column, path, pa.types.is_null, _is_text)
        _require_type(schema, layout.image_column, path, pa.types.is_null, _is_text, _holds_bytes)


def resolve_root(spec: DataSpec) -> Path:
    """The ``root`` of ``inspect(spec)``. Raises JobError as it does."""
    return inspect(spec).root


def _require(column: str, present: list[str], path: Path) -> None:
    if present.count(column) == 1:
        return
    if column in present:
        raise JobError(f"the column {column!r} occurs twice in {path}")
    folded = {name.casefold(): name for name in present}
    close = difflib.get_close_matches(column.casefold(), folded, n=1)
    hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
    raise JobError(f"no column {column!r} in {path}; it has {', '.join(map(repr, present))}.{hint}")


def _require_type(schema: pa.Schema, column: str, path: Path, *tests: Callable[[pa.DataType], bool]) -> None:
    kind = _item_type(schema.field(column).type)
    if not any(test(kind) for test in tests):
        raise JobError(f"the column {column!r} holds {kind} in {path}, which is not what it is used for")


def _item_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _holds_bytes(kind: pa.DataType) -> bool:
    item = _item_type(kind)
    if pa.types.is_struct(item):
        return any(field.name == "bytes" for field in item)
    return pa.types.is_binary(item) or pa.types.is_large_binary(item) or pa.types.is_binary_view(item)
