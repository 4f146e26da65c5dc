"""Preference data: groups of one chosen and several rejected answers to one prompt, from any of the known formats.

A *set* is one ``.json``, ``.jsonl`` or ``.parquet`` file. A row gives ``chosen`` and ``rejected`` (a text or a list of
texts) with an optional ``question``, or these as JSON text in a column ``text``, or Hugging Face's ``prompt``,
``chosen`` and ``rejected`` as texts or messages. Its images, if any, are ``image_name`` or ``image_path`` (below
``image_root/SET``), or ``image`` or ``images`` (paths, or encoded bytes).
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.chat import IMAGE
from src.dataset import fields
from src.dataset.images import ImageSource, locate_image
from src.dataset.rows import Row, iter_rows, table_suffix
from src.errors import JobError, RecordError

SUFFIXES = (".json", ".jsonl", ".parquet")
IMAGE_KEYS = ("image_name", "image_path", "image", "images")


@dataclass(frozen=True)
class PreferenceSet:
    """One file of preferences; relative image paths lie in ``image_folder``, which text-only sets need not have."""

    path: Path
    image_folder: Path | None = None

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class Preference:
    """One prompt with its answers.

    Attributes:
        id: ``<file name>:<row, 8 digits>``.
        source: name of the set, or the row's own ``source``.
        images: paths (checked to exist, inside the set's image folder) or ``{bytes, path}``, in order.
        question: what was asked; may hold one ``<image>`` per image.
        chosen, rejected: the better answer, and at least one worse.
        kind: what is wrong with the rejected answers, where the data say so (``kinds``, one for each), else empty.
    """

    id: str
    source: str
    images: tuple[ImageSource, ...]
    question: str
    chosen: str
    rejected: tuple[str, ...]
    kinds: tuple[str, ...] = ()


@dataclass
class PreferenceCounts:
    """What a source held: usable groups and pairs of them, with and without images, and unusable rows by kind."""

    groups: int = 0
    pairs: int = 0
    text_only: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def add(self, item: "Preference | RecordError") -> None:
        """Count one row."""
        if isinstance(item, RecordError):
            self.errors[item.kind] = self.errors.get(item.kind, 0) + 1
            return
        self.groups += 1
        self.pairs += len(item.rejected)
        self.text_only += not item.images


def find_sets(target_root: str, image_root: str | None = None) -> list[PreferenceSet]:
    """The sets of a folder (not of its sub-folders) in order of name, or the one file that ``target_root`` is.

    A set ``abc.json`` has its images in ``image_root/abc``; a single file given by name may have them in ``image_root``
    itself. A Parquet set without such a folder looks into ``image_root/CoCo``, as the published loader did.

    Raises:
        JobError: no such folder or file, no set in it, two sets of one name, or no such image root.
    """
    root = Path(target_root)
    if not root.exists():
        raise JobError(f"no such preference data: {root}")
    paths = [root] if root.is_file() else sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise JobError(f"no preference sets ({', '.join(SUFFIXES)}) in {root}")
    twice = [name for name, count in Counter(path.stem for path in paths).items() if count > 1]
    if twice:
        raise JobError(f"two sets in {root} are called {twice[0]}; their image folder would be the same")
    for path in paths:
        table_suffix(path)
    if image_root is not None and not Path(image_root).is_dir():
        raise JobError(f"no such image root: {image_root}")
    return [PreferenceSet(path, _image_folder(path, image_root, alone=root.is_file())) for path in paths]


def read_preferences(data: PreferenceSet) -> Iterator[Preference | RecordError]:
    """Read a set in a stream; a row that cannot be used is a RecordError in its place, naming the row.

    Raises:
        JobError: a row names an image file, but there is no folder to look in: a misspelt folder would else turn the
            whole set into text; or the rest of the file cannot be read.
    """
    for number, row in enumerate(iter_rows(data.path)):
        name = f"{data.path.name}:{number:08d}"
        try:
            yield _preference(row, name, data)
        except RecordError as error:
            yield RecordError(error.kind, f"{name}: {error}")


def _image_folder(path: Path, image_root: str | None, alone: bool) -> Path | None:
    if image_root is None:
        return None
    own = Path(image_root, path.stem)
    if own.is_dir():
        return own
    if path.suffix.lower() == ".parquet" and (shared := Path(image_root, "CoCo")).is_dir():
        return shared
    return Path(image_root) if alone else own


def _preference(row: Row, name: str, data: PreferenceSet) -> Preference:
    if isinstance(row, RecordError):
        raise row
    values = _unfold_text(row)
    images = _images(values, data)
    prompt = values.get("prompt", values.get("question"))
    in_messages = _is_messages(prompt) or (_is_messages(values.get("chosen")) and not isinstance(prompt, str))
    question = _question(prompt, values) if in_messages else fields.label(prompt, "question")
    chosen = _answer(values.get("chosen"), "chosen")
    given = values.get("rejected")
    several = isinstance(given, list) and not _is_messages(given)
    rejected = tuple(_answer(answer, "rejected") for answer in (given if several else [given]))  # type: ignore[union-attr]
    if not rejected:
        raise RecordError("empty_text", "the list of rejected answers is empty")
    if chosen in rejected:
        raise RecordError("bad_record", "the chosen answer is also among the rejected")
    wanted = question.count(IMAGE)
    if wanted not in (0, len(images)):
        raise RecordError("bad_record", f"{wanted} {IMAGE} placeholders for {len(images)} images")
    kinds = values.get("kinds") or ([values["kind"]] * len(rejected) if isinstance(values.get("kind"), str) else [])
    if kinds and len(kinds) != len(rejected):
        raise RecordError("bad_record", f"{len(kinds)} kinds for {len(rejected)} rejected answers")
    source = fields.label(values.get("source"), "source") or data.name
    return Preference(name, source, images, question, chosen, rejected, tuple(map(str, kinds)))


def _unfold_text(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with what its ``text`` column says in JSON; columns of their own win, for a question as for answers."""
    if "chosen" in row or not isinstance(row.get("text"), str):
        return row
    try:
        inner = json.loads(row["text"])
    except (ValueError, RecursionError) as error:
        raise RecordError("bad_record", f"the text column is not JSON: {error}") from error
    if not isinstance(inner, dict):
        raise RecordError("bad_record", f"the text column holds a JSON {type(inner).__name__}, not an object")
    return {**inner, **{key: value for key, value in row.items() if value is not None}}


def _images(row: Mapping[str, Any], data: PreferenceSet) -> tuple[ImageSource, ...]:
    given = next((row[key] for key in IMAGE_KEYS if row.get(key) is not None), None)
    sources: list[ImageSource] = []
    for image in fields.images(given if given != [] else None):
        if isinstance(image, str):
            if data.image_folder is None or not data.image_folder.is_dir():
                where = "no image root is given" if data.image_folder is None else f"no folder {data.image_folder}"
                raise JobError(f"{data.path} names images ({image!r:.80}), but there is {where}")
            path = locate_image(image, data.image_folder)
            if not path.is_file():
                raise RecordError("missing_image", f"{image!r} does not exist in {data.image_folder}")
            sources.append(str(path))
        else:
            sources.append(image)
    return tuple(sources)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and "role" in v for v in value)


def _question(prompt: Any, row: Mapping[str, Any]) -> str:
    """The one user turn of a prompt in messages, or of the turns that ``chosen`` and ``rejected`` have in common."""
    turns: Sequence[Any] = prompt if _is_messages(prompt) else row["chosen"][:-1]
    asked = [_content(turn) for turn in turns if turn["role"] == "user"]
    if len(asked) > 1 or any(turn["role"] not in ("user", "system") for turn in turns):
        raise RecordError("bad_record", "a prompt of several turns; only one question is supported")
    return asked[0] if asked else ""


def _answer(value: Any, what: str) -> str:
    if _is_messages(value):
        if value[-1]["role"] != "assistant":
            raise RecordError("bad_record", f"{what} does not end with an assistant turn")
        value = _content(value[-1])
    text = fields.label(value, what)
    if not text.strip():
        raise RecordError("empty_text", f"no {what} answer")
    return text


def _content(turn: Mapping[str, Any]) -> str:
    """The text of a message, whose content is a string or a list of parts; image parts become placeholders."""
    content = turn.get("content")
    if isinstance(content, list):
        pieces = [IMAGE if part.get("type") == "image" else str(part.get("text") or "") for part in content]
        return "".join(pieces)
    return fields.label(content, "content")
