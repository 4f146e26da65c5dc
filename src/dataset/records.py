"""Records of a data set: images with captions or a conversation, read in a stream from any supported format.

Caption tables are CSV, TSV, Parquet, folders of the ``datasets`` library, WebDataset tars, and JSON or JSONL whose
objects have the image and text columns. Objects with ``messages`` or ``conversations``, in JSON, JSONL or a tar without
``txt`` members, are ShareGPT or LLaVA conversations, unless ``text_column`` was set.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from src.dataset import fields, rows
from src.dataset.fields import CONVERSATION_KEYS, Turn
from src.dataset.files import DataFiles, find_files
from src.dataset.ids import UniqueIds
from src.dataset.images import ImageSource
from src.dataset.rows import Row
from src.dataset.spec import DataSpec, Layout, inspect, resolve_root
from src.dataset.writers import write_subset
from src.errors import RecordError

__all__ = [
    "DataSpec",
    "Layout",
    "Record",
    "Turn",
    "count_records",
    "file_fingerprint",
    "input_fingerprint",
    "inspect",
    "pick_records",
    "read_records",
    "resolve_root",
    "write_subset",
]

_WHOLE_BYTES = 2**28  # files up to this size are hashed whole, larger ones by 64 blocks of 1 MiB
_BLOCK = 2**20


@dataclass(frozen=True)
class Record:
    """One row of a data set.

    Attributes:
        id: unique in the data set; ``<file name>:<row in the file, 8 digits>`` when there is no id column or cell.
            Files of the same name in several folders go by their path below the folder of the data.
        row: 0-based number of the row in the data set, all files and unreadable rows counted.
        images: paths as given (ShareGPT without an image root: joined to the folder of the data), bytes, or
            ``{bytes, path}``.
        texts: the captions; a blank one is ``""``, which is an error of its own (empty_text) among others that are
            fine. Empty when ``turns`` is used.
        turns: the conversation, with as many ``<image>`` as there are images.
        question, source: ``""`` when not given.
        error: why the record cannot be used (bad_record, empty_text, missing_image, duplicate_id); the other
            fields then hold what could be read.
    """

    id: str
    row: int
    images: tuple[ImageSource, ...] = ()
    texts: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()
    question: str = ""
    source: str = ""
    error: RecordError | None = None

    def pair_id(self, index: int) -> str:
        """What the pair of caption ``index`` is called: the id, with ``#<index>`` where there are several captions."""
        return f"{self.id}#{index}" if len(self.texts) > 1 else self.id

    @property
    def captions(self) -> list[str]:
        """The texts that say anything (have a letter or digit), each once, in order: what is worth learning from."""
        return list(dict.fromkeys(text for text in self.texts if any(map(str.isalnum, text))))


def count_records(spec: DataSpec) -> int:
    """Number of rows, unusable ones included. Raises JobError as ``inspect``, or for a broken JSON list."""
    return inspect(spec).files.count_all()


def input_fingerprint(spec: DataSpec) -> dict[str, Any]:
    """``file_fingerprint`` of the data file; of several files their name, all bytes, and each under ``files``.

    Several files are hashed whole up to 256 MiB in all, beyond by fewer blocks each, at least 3. Raises JobError as
    ``find_files``.
    """
    data = find_files(spec.path)
    stored = data.stored
    if stored == [Path(spec.path)]:
        return file_fingerprint(stored[0])
    total = sum(path.stat().st_size for path in stored)
    blocks = 64 if total <= _WHOLE_BYTES else min(64, max(3, 1024 // len(stored)))
    whole = _WHOLE_BYTES if total <= _WHOLE_BYTES else blocks * _BLOCK
    prints = {data.below(path): file_fingerprint(path, whole, blocks) for path in stored}
    files = {name: f"{facts['bytes']} bytes, blake2b {facts['blake2b']}" for name, facts in prints.items()}
    return {"name": Path(spec.path).name, "bytes": total, "files": files}


def file_fingerprint(path: Path, whole: int | None = None, blocks: int = 64) -> dict[str, Any]:
    """``{"name", "bytes", "blake2b"}`` of a file, to notice that it has changed.

    Files of more than ``whole`` bytes (None: 256 MiB) are hashed by ``blocks`` evenly spaced blocks of 1 MiB, the
    first and last included.
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if size <= (_WHOLE_BYTES if whole is None else whole):
            while block := file.read(_BLOCK):
                digest.update(block)
        else:
            for k in range(blocks):
                file.seek((size - _BLOCK) * k // (blocks - 1))
                digest.update(file.read(_BLOCK))
    return {"name": path.name, "bytes": size, "blake2b": digest.hexdigest()}


def read_records(
    spec: DataSpec, start: int = 0, stop: int | None = None, layout: Layout | None = None
) -> Iterator[Record]:
    """Read the records of rows ``start`` to ``stop`` (excluded), the same ones whatever the range.

    Memory does not depend on the size of the data, but for 8 bytes a row when ``id_column`` is given; the ids are
    then read once before the first record. All formats but Parquet, saved data sets and tars read on from the
    beginning of the file in which the range starts, and count the rows of the files before it.

    Args:
        layout: what ``inspect(spec)`` said, to spare another look at the files and the counting that it has seen.

    Raises:
        JobError: at the call as ``inspect``; while reading when the rest of the file cannot be read.
    """
    return _records(spec, layout or inspect(spec), start, stop)


def pick_records(spec: DataSpec, wanted: Iterable[int]) -> Iterator[Record]:
    """Read the records of some rows, in rising order, reading as little else as the format allows.

    Raises:
        JobError: as ``read_records``.
    """
    layout = inspect(spec)
    order = sorted(set(wanted))
    # A table of Arrow is entered at any row; another file is read from its start anyway, so one pass must do.
    if layout.files.suffix in (".parquet", rows.SAVED):
        for row in order:
            yield from _records(spec, layout, row, row + 1)
    elif order:
        chosen = set(order)
        yield from (r for r in _records(spec, layout, order[0], order[-1] + 1) if r.row in chosen)


def _records(spec: DataSpec, layout: Layout, start: int, stop: int | None) -> Iterator[Record]:
    data = layout.files
    ids = UniqueIds(_ids(spec, data))
    if not ids.all_differ:
        for name in islice(_ids(spec, data), start):
            ids.claim(name)
    columns = [layout.image_column, layout.text_column, spec.id_column, spec.source_column, spec.question_column]
    used = [column for column in dict.fromkeys(columns) if column is not None]
    used += CONVERSATION_KEYS if layout.conversations else ()
    count = None if stop is None else max(0, stop - start)
    for row, (file, place, values) in enumerate(islice(data.iter_rows(used, start), count), start):
        name, error = _id(values, spec), None
        if name and ids.claim(name):
            error = RecordError("duplicate_id", f"an earlier row has the id {name!r}")
            name = ids.unused(f"{name}@row{row}", f"@row{row}")
        elif not name:
            if spec.id_column is not None:
                error = RecordError("bad_record", f"no usable id in column {spec.id_column!r}")
            name = ids.unused(f"{data.names[file]}:{place:08d}", f"@row{row}")
        parts, problem = _parts(values, spec, layout)
        yield Record(name, row, **parts, error=error or problem)


def _ids(spec: DataSpec, data: DataFiles) -> Iterator[str]:
    if spec.id_column is None:
        return iter(())
    return (_id(values, spec) for _, _, values in data.iter_rows([spec.id_column]))


def _id(values: Row, spec: DataSpec) -> str:
    try:
        return _label(values, spec.id_column)
    except RecordError:
        return ""


def _label(values: Row, column: str | None) -> str:
    return fields.label(values.get(column), column) if column is not None and isinstance(values, dict) else ""


def _parts(values: Row, spec: DataSpec, layout: Layout) -> tuple[dict[str, Any], RecordError | None]:
    """What could be read of a record, and the error at which reading it ended."""
    if isinstance(values, RecordError):
        return {}, values
    parts: dict[str, Any] = {}
    try:
        parts["source"] = _label(values, spec.source_column)
        if layout.conversations:
            # absolute, as ``open_image`` takes relative ones to be below the root, which is that folder
            folder = layout.files.folder.absolute() if spec.image_root is None else None
            keys = ("image", "images") if layout.files.suffix == ".tar" else ("images", "image")
            given = next((values[key] for key in keys if values.get(key) is not None), None)
            parts["images"] = fields.images(given, folder)
            parts["turns"] = fields.conversation(values, len(parts["images"]))
        else:
            parts["question"] = _label(values, spec.question_column)
            parts["texts"] = fields.captions(values.get(layout.text_column))
            parts["images"] = fields.images(values.get(layout.image_column))
            if not parts["images"]:
                raise RecordError("missing_image", f"no image in column {layout.image_column!r}")
            if not any(parts["texts"]):
                raise RecordError("empty_text", f"no text in column {layout.text_column!r}")
    except RecordError as error:
        return parts, error
    return parts, None
