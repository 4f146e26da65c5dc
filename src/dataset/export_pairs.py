"""The kept pairs of a data set as an export wants them: text, score and encoded image, or the reason why it cannot."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from src.dataset.ahead import ahead
from src.dataset.fields import PLACEHOLDER, Turn
from src.dataset.images import FORMATS, ImageLimits, ImageSource, encoded_image, locate_image
from src.dataset.kept import Kept, pick
from src.dataset.records import Record, read_records
from src.dataset.spec import DataSpec, Layout
from src.errors import JobError, RecordError

EXTENSIONS = {
    "JPEG": "jpg", "PNG": "png", "TIFF": "tif", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "JPEG2000": "jp2",
    "PPM": "ppm",
}  # fmt: skip
_FOLDER_IMAGES = 10_000  # file systems grow slow with folders of millions of files


@dataclass(frozen=True)
class Picture:
    """An image that was decoded once: its encoded bytes, their format (of ``EXTENSIONS``), and its name in a table."""

    content: bytes
    format: str
    name: str

    @property
    def extension(self) -> str:
        """The usual ending of its format, without a dot."""
        return EXTENSIONS[self.format]


@dataclass(frozen=True)
class Pair:
    """A kept pair.

    Attributes:
        key: unique in the data set, of digits and ``_``: the row of the record, and the number of the caption where
            the record has several.
        id: as in the score table.
        text: the caption, or of a conversation the last answer, which is what the score is about.
        turns: the conversation; empty where the record has captions.
        images: in their order.
    """

    key: str
    id: str
    text: str
    score: float
    question: str
    source: str
    turns: tuple[Turn, ...]
    images: tuple[Picture, ...]

    @property
    def image(self) -> Picture:
        """The image of a pair that has one. Raises RecordError (missing_image, several_images)."""
        if len(self.images) == 1:
            return self.images[0]
        if not self.images:
            raise RecordError("missing_image", "the record has no image")
        raise RecordError("several_images", f"the record has {len(self.images)} images; the format has one a text")


@dataclass(frozen=True)
class Naming:
    """What a table calls images.

    Attributes:
        root: what the names of images that stay where they are are relative to; None: they are absolute paths.
        folder: images become files of the export below this folder, under names that are unique and do not leave it:
            as they are called below ``root``, or ``by_row`` with the ending of the real format. None: they stay.
    """

    root: Path | None
    folder: str | None = None
    by_row: bool = False

    def __call__(self, file: Path | None, kind: str, row: int, key: str) -> str:
        """The name of an image from its resolved file (None: there is none), format, row, and a key of its own.

        Raises:
            RecordError: unsafe_path, where it lies outside ``root``.
        """
        if self.folder is not None and (self.by_row or file is None):
            return f"{self.folder}/{row // _FOLDER_IMAGES:04d}/{key}.{EXTENSIONS[kind]}"
        assert file is not None  # images within the data become files
        if self.root is None:
            return str(file)
        root = self.root.resolve()
        if not file.is_relative_to(root):
            raise RecordError("unsafe_path", f"{str(file)!r} lies outside the image root {self.root}")
        below = file.relative_to(root).as_posix()
        return below if self.folder is None else f"{self.folder}/{below}"


def kept_pairs(
    spec: DataSpec,
    kept: Kept,
    layout: Layout,
    naming: Naming,
    left_out: Callable[[str, RecordError], None],
    check: Callable[[Pair], object],
    limits: ImageLimits | None = None,
    formats: Collection[str] = FORMATS,
) -> Iterator[Pair]:
    """Yield the kept pairs in the order of their rows, their images read and decoded ahead in threads.

    Args:
        spec: the data set.
        kept: ``(row, [(text index, score), ...])`` in strictly rising row order.
        layout: what ``inspect`` says of it.
        naming: what the export calls the images.
        left_out: called with id and reason for each pair that is not yielded.
        check: raises RecordError for a pair that the format cannot hold.
        limits: what an image may measure.
        formats: what the export can hold; an image of another format becomes a PNG, with the pixels that
            ``open_image`` gives.

    Raises:
        JobError: as ``read_records``, or a kept row or caption is not there.
    """

    def pictures(record: Record) -> tuple[Picture, ...]:
        if record.error:
            raise record.error
        found = []
        for number, source in enumerate(record.images):
            file = image_file(source, layout.root)
            content, kind = encoded_image(source, layout.root, limits, formats)
            key = f"{record.row:08d}" + (f"_{number}" if len(record.images) > 1 else "")
            found.append(Picture(content, kind, naming(file, kind, record.row, key)))
        return tuple(found)

    workers = min(16, os.cpu_count() or 1)
    wanted = pick(read_records(spec, layout=layout), kept, Path(spec.path))
    for (record, scores), waiting in ahead(wanted, lambda item: pictures(item[0]), workers, 2 * workers):
        for index, score in scores:
            pair_id = record.pair_id(index)
            try:
                images = waiting.result()
                text = _text(record, index)
                key = f"{record.row:08d}" + (f"_{index}" if len(record.texts) > 1 else "")
                pair = Pair(key, pair_id, text, score, record.question, record.source, record.turns, images)
                check(pair)
            except RecordError as error:
                left_out(pair_id, error)
                continue
            yield pair


def image_file(source: ImageSource, root: Path | None) -> Path | None:
    """The file that an image is read from, None for one within the data. Raises RecordError as ``locate_image``."""
    if isinstance(source, Mapping) and source.get("bytes") is None:
        source = source.get("path") or b""
    return locate_image(source, root) if isinstance(source, str | Path) else None


def _text(record: Record, index: int) -> str:
    texts = record.texts or tuple(turn["content"] for turn in record.turns if turn["role"] == "assistant")[-1:]
    if index >= len(texts):
        raise JobError(f"{record.id} has no caption {index}, though it was kept. Has the data changed since scoring?")
    if not texts[index].strip():
        raise RecordError("empty_text", "the caption is empty")
    return texts[index]


def messages(pair: Pair, question: str) -> list[Turn]:
    """The conversation of a pair with as many ``<image>`` as it has images; a caption answers its question.

    Args:
        question: for captions whose record has none.

    Raises:
        RecordError: bad_record where the number of ``<image>`` is another.
    """
    turns = list(pair.turns)
    if not turns:
        asked = pair.question or question
        if PLACEHOLDER not in asked:
            asked = f"{PLACEHOLDER}\n" * len(pair.images) + asked
        turns = [Turn(role="user", content=asked), Turn(role="assistant", content=pair.text)]
    found = sum(turn["content"].count(PLACEHOLDER) for turn in turns)
    if found != len(pair.images):
        raise RecordError("bad_record", f"{found} {PLACEHOLDER} placeholders for {len(pair.images)} images")
    return turns
