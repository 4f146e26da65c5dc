"""What the cells of a row mean: labels, captions, images, conversations. Raises RecordError for one that is bad."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from src.dataset.images import ImageSource, is_url
from src.dataset.rows import is_utf8
from src.errors import RecordError

PLACEHOLDER = "<image>"
CONVERSATION_KEYS = ("messages", "conversations")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Turn(TypedDict):
    """One turn of a conversation: role ``system``, ``user`` or ``assistant``; ``<image>`` may stand in the content."""

    role: str
    content: str


def label(value: Any, column: str) -> str:
    """An optional cell as text: ``""`` when missing, numbers written out. Raises bad_record."""
    if _missing(value):
        return ""
    return _text(str(value) if isinstance(value, int | float) else value, f"the column {column!r}")


def captions(value: Any) -> tuple[str, ...]:
    """The caption, or the list of captions, of a cell: at least one, blank ones as ``""``. Raises bad_record."""
    given = value if isinstance(value, list) and value else [None if isinstance(value, list) else value]
    texts = ["" if _missing(caption) else _text(caption, "the caption") for caption in given]
    return tuple(text if text.strip() else "" for text in texts)


def images(value: Any, folder: Path | None = None) -> tuple[ImageSource, ...]:
    """The image, or the list of images, of a cell: none when missing; relative paths joined to ``folder``.

    Raises bad_record, or missing_image for a blank path.
    """
    if _missing(value):
        return ()
    given = [_image(image) for image in (value if isinstance(value, list) else [value])]
    if folder is None:
        return tuple(given)
    return tuple(
        os.path.join(folder, image) if isinstance(image, str) and not is_url(image) else image  # noqa: PTH118
        for image in given
    )


def conversation(row: Mapping[str, Any], images: int) -> tuple[Turn, ...]:
    """The turns of a ShareGPT object with ``images`` images, and as many placeholders.

    Placeholders stay where they are. When there are none, they are put in front of the first user turn. Raises
    bad_record (malformed, no assistant turn, a wrong number of placeholders) or empty_text (blank last answer).
    """
    given = next((row[key] for key in CONVERSATION_KEYS if key in row), None)
    if not isinstance(given, list) or not all(isinstance(turn, dict) for turn in given):
        raise RecordError("bad_record", f"no list of turns under {' or '.join(CONVERSATION_KEYS)}")
    turns = [_turn(turn) for turn in given]
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    if not answers:
        raise RecordError("bad_record", "the conversation has no assistant turn")
    if not answers[-1].strip():
        raise RecordError("empty_text", "the last assistant turn is empty")
    placeholders = sum(turn["content"].count(PLACEHOLDER) for turn in turns)
    asked = next((turn for turn in turns if turn["role"] == "user"), None)
    if placeholders == 0 and asked is not None:
        asked["content"] = PLACEHOLDER * images + asked["content"]
    elif placeholders != images:
        raise RecordError("bad_record", f"{placeholders} {PLACEHOLDER} placeholders for {images} images")
    return tuple(turns)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any, what: str) -> str:
    if isinstance(value, RecordError):
        raise RecordError(value.kind, f"{what}: {value}")
    if not isinstance(value, str):
        raise RecordError("bad_record", f"{what} is not text but {type(value).__name__}: {value!r:.80}")
    if not is_utf8(value):
        raise RecordError("bad_record", f"{what} is not UTF-8: {value!r:.80}")
    return value


def _image(value: Any) -> ImageSource:
    if isinstance(value, bytes):
        return value
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes):
            return value
        value = value.get("path")
    path = "" if _missing(value) else _text(value, "the image path")
    if not path.strip():
        raise RecordError("missing_image", "no image is given")
    return path


def _turn(turn: Mapping[str, Any]) -> Turn:
    name = turn.get("from", turn.get("role"))
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise RecordError("bad_record", f"unknown role {name!r:.80}")
    return Turn(role=role, content=_text(turn.get("value", turn.get("content")), f"the {role} turn"))
