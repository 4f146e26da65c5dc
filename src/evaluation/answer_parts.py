"""Answers to a task on disk, a line each: a run goes on where it stopped, with any number of processes.

Every process appends to a file of its own; a question belongs to the process whose rank is its index modulo their
number. What is read again is the union of all files: the number of processes may change from run to run.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from src.errors import RecordError


@dataclass(frozen=True)
class Line:
    """What became of a question.

    Attributes:
        index: of the question.
        asked: digest of the prompt and the images' paths: an answer to another question does not count.
        text: None if there is no answer.
        size: (width, height) of the image in pixels, where boxes are asked for.
        error: kind and message; asked again in the next run.
        more: the texts after the first, where several are drawn, and how each ended.
    """

    index: int
    asked: str
    text: str | None = None
    finish: str | None = None
    size: tuple[int, int] | None = None
    error: tuple[str, str] | None = None
    more: tuple[tuple[str, str], ...] = ()


def digest(*what: Any) -> str:
    """Of anything that JSON takes."""
    told = json.dumps(what, sort_keys=True, default=str)
    return hashlib.blake2b(told.encode(errors="surrogatepass"), digest_size=10).hexdigest()


class AnswerParts:
    """The files of one model, sampling and task.

    Args:
        folder: of the files; made if need be.
        rank, world: of this process, and how many there are.
    """

    def __init__(self, folder: Path, rank: int = 0, world: int = 1):
        self.folder, self.rank, self.world = folder, rank, world
        self._file: BinaryIO | None = None

    def forget(self) -> None:
        """Remove all answers."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def read(self, asked: Sequence[str]) -> dict[int, Line]:
        """The answers to questions with these digests, by index; one without an error goes before one with."""
        found: dict[int, Line] = {}
        for path in sorted(self.folder.glob("part-*.jsonl")):
            for line in _lines(path):
                fits = line.index < len(asked) and line.asked == asked[line.index]
                if fits and (line.index not in found or found[line.index].error):
                    found[line.index] = line
        return found

    def mine(self, indexes: Sequence[int]) -> list[int]:
        """Those of some questions that this process answers."""
        return [index for index in indexes if index % self.world == self.rank]

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"part-{self.rank:04d}.jsonl"
        self._file = path.open("ab+")
        cut_torn_line(self._file)
        return self

    def write(self, line: Line) -> None:
        """Append a line; whole lines are all that a killed process leaves."""
        assert self._file
        self._file.write(json.dumps(asdict(line)).encode() + b"\n")
        self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file
        os.fsync(self._file.fileno())
        self._file.close()


def record_error(line: Line) -> RecordError | None:
    """The error of a line, if there is one."""
    return RecordError(*line.error) if line.error else None


def _lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        for text in file:
            try:
                content = json.loads(text)
                size, error = content.pop("size"), content.pop("error")
                more = tuple(map(tuple, content.pop("more", ())))
                yield Line(**content, size=size and tuple(size), error=error and tuple(error), more=more)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # torn by a kill: the question is asked again


def cut_torn_line(file: BinaryIO) -> None:
    """Leave whole lines alone in a file, and its end as the place to write."""
    end = file.seek(0, os.SEEK_END)
    at = end
    while at:
        start = max(0, at - 65536)
        file.seek(start)
        newline = file.read(at - start).rfind(b"\n")
        if newline >= 0:
            at = start + newline + 1
            break
        at = start
    file.truncate(at)
    file.seek(0, os.SEEK_END)
