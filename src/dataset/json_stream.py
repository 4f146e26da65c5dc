"""Read the elements of a JSON list one at a time, holding only a part of the text."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from src.errors import JobError

MAX_VALUE = 2**26  # characters of one element

_CHUNK = 2**20
_BLANK = re.compile(r"[ \t\r\n]*")
_NUMERIC = re.compile(r"[-+.0-9eE]*")


class JsonList:
    """Iterate over the elements of the JSON list in a text file.

    Raises JobError, naming the line, where the text is not a list, is broken, or an element is beyond ``MAX_VALUE``.
    """

    def __init__(self, file: TextIO, name: str):
        """``file``: opened with ``newline=""``; ``name``: how messages call it."""
        self._file, self._name = file, name
        self._text, self._at = "", 0  # the part held, and the place in it up to which it has been used
        self._lines = 0  # newlines before the part held

    def __iter__(self) -> Iterator[Any]:
        if self._upcoming() != "[":
            raise self._broken("a list of objects is expected")
        self._at += 1
        mark = self._upcoming()
        if mark == "]":
            self._at += 1
        while mark != "]":
            self._upcoming()
            yield self._value()
            mark = self._upcoming()
            if mark not in (",", "]"):
                raise self._broken("',' or ']' is expected")
            self._at += 1
        if self._upcoming():
            raise self._broken("nothing is expected after the list")

    def _grow(self) -> bool:
        """Drop what has been used and read on, at least doubling the rest, so that long elements cost linear time."""
        chunk = self._file.read(max(_CHUNK, len(self._text) - self._at))
        self._lines += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)

    def _upcoming(self) -> str:
        """Move to the next character that is not blank and return it; empty at the end of the file."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._grow():
                return ""

    def _value(self) -> Any:
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                offset = error.pos - self._at
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - 16
                if not (cut and len(self._text) - self._at < MAX_VALUE and self._grow()):
                    raise self._broken(error.msg, offset) from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                raise self._broken(str(error)) from error
            else:
                length = end - self._at
                rest = _NUMERIC.match(self._text, end)
                cut = rest is not None and rest.end() == len(self._text)  # "1" of a number 1.5, perhaps
                if not (cut and self._grow()):
                    self._at += length
                    return value

    def _broken(self, problem: str, offset: int = 0) -> JobError:
        position = self._at + offset
        line = 1 + self._lines + self._text.count("\n", 0, position)
        before = self._text[max(0, position - 30) : position]
        return JobError(f"{self._name}: broken JSON in line {line}, after {before!r}: {problem}")
