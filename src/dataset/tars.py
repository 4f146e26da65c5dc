"""Samples of a WebDataset tar, one at a time, without writing anything to disk.

Neighbouring members whose names agree up to the first dot of the base name (folder included) are one sample. Its row
has ``__key__`` (that common name), ``image`` (members jpg, jpeg, png, webp, tif, tiff as ``{bytes, path}``; a list
where there are several), the keys of its ``json`` object, and every other member as text under its extension, such as
``txt``. A member wins over a key of the same name.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.dataset.images import ImageLimits
from src.dataset.json_stream import MAX_VALUE
from src.errors import JobError, RecordError

IMAGE, KEY = "image", "__key__"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "tif", "tiff")

_BLOCK = 512  # bytes; the unit of a tar


@dataclass(frozen=True)
class Sample:
    """The members of one sample by extension (lower case, all that follows the first dot), in their order.

    Members can be read until the next sample is asked for.
    """

    key: str
    archive: tarfile.TarFile
    path: Path
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)

    def row(self, columns: Sequence[str] | None = None) -> dict[str, Any] | RecordError:
        """``{column: value}``; a member that is too large or no UTF-8 is a RecordError as the value of its column.

        ``columns`` spares the reading of other members. A ``json`` member that holds no object is a RecordError
        for the row. Raises JobError when the tar is damaged.
        """
        own: dict[str, Any] = {KEY: self.key}
        images = [extension for extension in self.members if is_image(extension)]
        if images and (columns is None or IMAGE in columns):
            given = [self._image(extension) for extension in images]
            own[IMAGE] = given[0] if len(given) == 1 else given
        texts = [extension for extension in self.members if extension != "json" and extension not in images]
        for extension in texts:
            if columns is None or extension in columns:
                own[extension] = self._text(extension)
        if "json" not in self.members or (columns is not None and own.keys() >= set(columns)):
            return own
        content = self._object()
        return content if isinstance(content, RecordError) else content | own

    def columns(self) -> list[str]:
        """The columns that ``row`` has; those of a broken ``json`` member are left out."""
        content = self._object() if "json" in self.members else {}
        names = [IMAGE if is_image(extension) else extension for extension in self.members if extension != "json"]
        return list(dict.fromkeys([KEY, *names, *(content if isinstance(content, dict) else ())]))

    def copy_to(self, target: tarfile.TarFile) -> None:
        """Add every member, its name, header fields and bytes unchanged, to another tar."""
        with _damage_named(self.path):
            for member in self.members.values():
                add_member(target, copy(member), self.archive.extractfile(member))

    def _object(self) -> dict[str, Any] | RecordError:
        text = self._text("json")
        if isinstance(text, RecordError):
            return text
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            return RecordError("bad_record", f"{self.members['json'].name} is not JSON: {error}")
        if isinstance(content, dict):
            return content
        return RecordError("bad_record", f"{self.members['json'].name} holds no object but {type(content).__name__}")

    def _image(self, extension: str) -> dict[str, Any] | RecordError:
        member = self.members[extension]
        if member.size > ImageLimits.max_bytes:
            return RecordError(
                "image_too_large", f"{member.name} has {member.size} bytes; limit {ImageLimits.max_bytes}"
            )
        return {"bytes": self._read(member), "path": member.name}

    def _text(self, extension: str) -> str | RecordError:
        member = self.members[extension]
        if member.size > MAX_VALUE:
            return RecordError("bad_record", f"{member.name} has {member.size} bytes; limit {MAX_VALUE}")
        try:
            return self._read(member).decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            return RecordError("bad_record", f"{member.name} is not UTF-8: {error}")

    def _read(self, member: tarfile.TarInfo) -> bytes:
        with _damage_named(self.path):
            file = self.archive.extractfile(member)
            return file.read() if file else b""


def samples(path: Path) -> Iterator[Sample]:
    """Yield the samples in their order; what is no regular file, and names that begin with a dot or ``__``, are not.

    A key that comes back after another one begins a new sample, and so does an extension that its sample has already.

    Raises:
        JobError: no tar, or damaged from some point on.
    """
    with _damage_named(path), tarfile.open(path, "r:") as archive:
        sample: Sample | None = None
        for member in _members(archive):
            folder, slash, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            if not member.isfile() or not stem or name.startswith("__"):
                continue
            key, extension = folder + slash + stem, extension.lower()
            if sample is not None and (sample.key != key or extension in sample.members):
                yield sample
                sample = None
            sample = sample or Sample(key, archive, path)
            sample.members[extension] = member
        if sample is not None:
            yield sample


def is_image(extension: str) -> bool:
    """Whether a member of this extension is an image; ``left.jpg`` is one too."""
    return extension.rpartition(".")[2] in IMAGE_EXTENSIONS


def add_member(target: tarfile.TarFile, member: tarfile.TarInfo, content: Any) -> None:
    """Append a member to a tar that is being written, which else would remember all of them."""
    member.type = tarfile.REGTYPE  # a sparse member is read, and so written, in full
    target.addfile(member, content)
    target.members.clear()  # type: ignore[attr-defined]


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it else remembers all of them
        yield member
    # The module takes a header that makes no sense for the end of the tar.
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(_BLOCK).strip(b"\0"):
        raise tarfile.ReadError(f"no valid header at byte {archive.offset}")


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise JobError(f"{path} is not a readable tar, or damaged: {error}") from error
