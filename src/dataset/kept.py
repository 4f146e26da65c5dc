"""Which rows of a stream are kept, with what scores, and what the column of scores is called."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from src.errors import JobError, RecordError

Scores = list[tuple[int, float]]  # (number of the caption, score)
Kept = Iterable[tuple[int, Scores]]  # (row, the scores of its kept captions), rows rising
T = TypeVar("T")


def pick(items: Iterator[T | RecordError], kept: Kept, path: Path) -> Iterator[tuple[T, Scores]]:
    """Pair the kept rows of a stream of all rows with their scores, these by rising caption number.

    Raises:
        JobError: a kept row is not there or cannot be read; ``path`` is named.
        ValueError: rows do not rise.
    """
    here = -1
    for row, scores in kept:
        if row <= here:
            raise ValueError(f"kept rows must rise: {row} after {here}")
        item = next(islice(items, row - here - 1, None), None)
        if item is None or isinstance(item, RecordError):
            raise JobError(f"row {row} cannot be kept: {item or 'no such row'}. Has {path} changed since scoring?")
        here = row
        yield item, [(k, float(score)) for k, score in sorted(scores)]


def score_name(taken: Iterable[str]) -> str:
    """``score``, with ``_rs`` added until no column has that name."""
    names = set(taken)
    name = "score"
    while name in names:
        name += "_rs"
    return name
