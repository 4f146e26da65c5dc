"""Which file a data set is, what its columns mean, and the checks before work on it starts."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from src.dataset import rows
from src.dataset.fields import CONVERSATION_KEYS
from src.errors import JobError


@dataclass(frozen=True)
class DataSpec:
    """Where a data set is, and which of its columns mean what.

    Attributes:
        path: .csv, .tsv, .json, .jsonl or .parquet file.
        image_root: folder that images are relative to and must lie in; None: the folder of the data file.
        image_column: paths, or in Parquet ``{bytes, path}`` or binary; a list of them is several images. The
            default gives way to a column ``image`` of a Parquet file that holds encoded images.
        text_column: a caption or a list of captions.
        id_column, source_column, question_column: optional further columns of text.
    """

    path: str
    image_root: str | None = None
    image_column: str = "filename"
    text_column: str = "title"
    id_column: str | None = None
    source_column: str | None = None
    question_column: str | None = None


@dataclass(frozen=True)
class Layout:
    """What a look at the file settles: its format, whether it holds conversations, and the image column."""

    path: Path
    suffix: str
    conversations: bool
    image_column: str


def inspect(spec: DataSpec) -> Layout:
    """Check a data set before work on it starts.

    Raises:
        JobError: missing, empty or unsupported file, no records, unknown column, a Parquet column of a type that
            cannot hold what it should, missing image root.
    """
    path = Path(spec.path)
    suffix = rows.table_suffix(path)
    if spec.image_root is not None and not Path(spec.image_root).is_dir():
        raise JobError(f"no such image root: {spec.image_root}")
    if next(rows.iter_rows(path, columns=[]), None) is None:
        raise JobError(f"{path} holds no records")
    present = rows.column_names(path)
    schema = None
    image_column = spec.image_column
    if suffix == ".parquet":
        with rows.parquet_file(path) as file:
            schema = file.schema_arrow
        if image_column == DataSpec.image_column and "image" in present and _holds_bytes(schema.field("image").type):
            image_column = "image"
    conversations = (
        suffix in (".json", ".jsonl")
        and spec.text_column == DataSpec.text_column
        and any(key in present for key in CONVERSATION_KEYS)
    )
    optional = [spec.id_column, spec.source_column] + ([] if conversations else [spec.question_column])
    used = [column for column in optional if column is not None]
    if not conversations:
        used += [image_column, spec.text_column]
    for column in used:
        _require(column, present, path)
    if schema is not None:
        _require_type(schema, spec.text_column, pa.types.is_null, _is_text)
        _require_type(schema, image_column, pa.types.is_null, _is_text, _holds_bytes)
    return Layout(path, suffix, conversations, image_column)


def resolve_root(spec: DataSpec) -> Path:
    """The ``root`` with which ``open_image`` is to open images of this data set. Raises JobError as ``inspect``.

    Without ``image_root`` it is the folder of the data file; paths elsewhere need an ``image_root`` that holds them.
    """
    layout = inspect(spec)
    return Path(spec.image_root) if spec.image_root is not None else layout.path.parent


def _require(column: str, present: list[str], path: Path) -> None:
    if present.count(column) == 1:
        return
    if column in present:
        raise JobError(f"the column {column!r} occurs twice in {path}")
    folded = {name.casefold(): name for name in present}
    close = difflib.get_close_matches(column.casefold(), folded, n=1)
    hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
    raise JobError(f"no column {column!r} in {path}; it has {', '.join(map(repr, present))}.{hint}")


def _require_type(schema: pa.Schema, column: str, *tests: Callable[[pa.DataType], bool]) -> None:
    kind = _item_type(schema.field(column).type)
    if not any(test(kind) for test in tests):
        raise JobError(f"the column {column!r} holds {kind}, which is not what it is used for")


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
