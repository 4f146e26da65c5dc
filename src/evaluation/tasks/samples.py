"""Questions of a task from its annotations: the published form, VRSBench's, and ours, as one type."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from src.chat import IMAGE
from src.dataset.rows import is_utf8, iter_rows
from src.errors import JobError, RecordError

_IMAGES = ("images", "image", "image_id", "filename")
_QUESTIONS = ("question", "query")
_REFERENCES = ("references", "ground_truth", "answer", "captions")
_IDS = ("id", "question_id")


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        index: of the question in its task, from 0.
        id: the given one, or ``<file>:<row>``; ``#k`` for the later questions of a conversation.
        images: paths.
        question: without ``<image>`` for a single image.
        references: right answers; several captions are all of them.
        options: letter to text, of multiple choice.
        types: of the question; it counts in each.
        size: (width, height) in pixels as the annotations have it, or None.
        error: why it cannot be asked; then it counts as wrong.
    """

    index: int
    id: str
    images: tuple[str, ...] = ()
    question: str = ""
    references: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    error: RecordError | None = None

    @property
    def reference(self) -> str:
        """The first right answer, or nothing."""
        return self.references[0] if self.references else ""

    def asked(self, instruction: str = "") -> str:
        """The question with its options, a line each, and the instruction."""
        options = [f"{letter}. {text}" for letter, text in self.options.items()]
        return "\n".join(line for line in (self.question, *options, instruction) if line)


def refuse_no_file(path: Path, task: str) -> None:
    """Raises JobError."""
    if not path.is_file():
        raise JobError(f"task {task} needs {path}, which does not exist")


def read_samples(path: Path, limit: int | None = None, images: str = "") -> list[Sample]:
    """The questions of an annotation file (JSON list or JSON lines), all or the first ``limit``; they stay in memory.

    Keys of a record (the first that is there counts): ``images | image | image_id | filename`` one path or several;
    ``image_path`` their folder, relative to the annotations' folder (without it: the folder ``images`` there, or one
    named like the file; but the paths of the key ``images`` are relative to the annotations' folder; an absolute
    ``images`` is the folder of all of them, whatever a record says);
    ``conversations | conversation`` in turns, of which each pair is a question of its own, or ``question | query``
    with ``references | ground_truth | answer | captions``; ``options`` a list or letter to text; ``type`` one or
    several; ``size`` (height, width).

    Raises:
        JobError: no such file, or no list in it.
    """
    refuse_no_file(path, path.stem)
    return list(islice(_samples(path, images or path.stem), limit))


def _samples(path: Path, folder: str) -> Iterator[Sample]:
    index = 0
    for row_number, row in enumerate(iter_rows(path)):
        name = f"{path.name}:{row_number}"
        try:
            if isinstance(row, RecordError):
                raise row
            given = next((row[key] for key in _IDS if row.get(key) not in (None, "")), name)
            pairs = list(_pairs(row))
            images, size = _images(row, path.parent, folder), _size(row.get("size"))
            options, types = _options(row.get("options")), _types(row.get("type"))
        except RecordError as error:
            yield Sample(index, name, error=RecordError(error.kind, f"{name}: {error}"))
            index += 1
            continue
        for number, (question, references) in enumerate(pairs):
            said = question if len(images) > 1 else question.replace(f"{IMAGE}\n", "").replace(IMAGE, "")
            own = f"{given}#{number}" if number else str(given)
            yield Sample(index, own, images, said.strip(), references, options, types, size)
            index += 1


def _pairs(row: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    turns = row.get("conversations", row.get("conversation"))
    if turns is None:
        question = next((row[key] for key in _QUESTIONS if key in row), "")
        yield _text(question, "the question"), _references(row)
        return
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, Mapping) for turn in turns):
        raise RecordError("bad_record", "conversations need a question and an answer")
    for asked, answered in zip(turns[::2], turns[1::2], strict=False):
        yield _text(asked.get("value"), "a question"), (_text(answered.get("value"), "an answer"),)


def _references(row: Mapping[str, Any]) -> tuple[str, ...]:
    given = next((row[key] for key in _REFERENCES if row.get(key) is not None), None)
    several = given if isinstance(given, list) else [given]
    if given is None or not several:
        raise RecordError("bad_record", f"no right answer: none of {', '.join(_REFERENCES)}")
    return tuple(_text(one, "an answer") for one in several)


def _images(row: Mapping[str, Any], root: Path, folder: str) -> tuple[str, ...]:
    key = next((key for key in _IMAGES if row.get(key)), None)
    if key is None:
        raise RecordError("missing_image", "the record names no image")
    given = row[key] if isinstance(row[key], list) else [row[key]]
    below = folder if Path(folder).is_absolute() else row.get("image_path", "" if key == "images" else folder)
    if not isinstance(below, str) or not all(isinstance(name, str) and name for name in given):
        raise RecordError("bad_record", f"{key} and image_path must be paths")
    return tuple(str(root / below / name) for name in given)


def _options(given: Any) -> dict[str, str]:
    if given is None:
        return {}
    if isinstance(given, list):
        given = dict(zip(ascii_uppercase, given, strict=False))
    if not isinstance(given, Mapping):
        raise RecordError("bad_record", "options must be a list, or letters with their texts")
    return {str(letter): _text(text, "an option") for letter, text in given.items()}


def _types(given: Any) -> tuple[str, ...]:
    if given is None:
        return ()
    return tuple(str(one) for one in given) if isinstance(given, list) else (str(given),)


def _size(given: Any) -> tuple[int, int] | None:
    if given is None:
        return None
    try:
        height, width = (int(side) for side in given)
    except (TypeError, ValueError) as error:
        raise RecordError("bad_record", f"size must be two numbers, height and width, not {given!r}") from error
    return (width, height) if min(width, height) > 0 else None


def _text(given: Any, what: str) -> str:
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise RecordError("bad_record", f"{what} must be text, not {type(given).__name__}")
    if not is_utf8(str(given)):
        raise RecordError("bad_record", f"{what} is not UTF-8")
    return str(given)
