"""Which files a data set is made of, and its rows across them, numbered through.

A path is one data file, a folder of them, a pattern (``train-*.parquet``, ``shard-{000..012}.tar``, ``{a,b}.csv``), or
a folder saved by the ``datasets`` library, which counts as one file.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product, takewhile
from pathlib import Path

from src.dataset import rows
from src.dataset.rows import FORMATS, Row
from src.dataset.saved_datasets import is_saved_dataset, saved_files
from src.errors import JobError

_BRACES = re.compile(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}")
_MAX_PATTERNS = 100_000  # a slip of the finger in {0..99999999} must not fill the memory


@dataclass(frozen=True)
class DataFiles:
    """The files of a data set, all of one format, in the order of their paths.

    Attributes:
        paths: at least one.
        folder: the folder given, or the one in which a file lies or below which a pattern matches.
        suffix: the format, as ``rows.table_suffix`` names it.
        alone: whether the path named one file, and not a folder or pattern.
    """

    paths: tuple[Path, ...]
    folder: Path
    suffix: str
    alone: bool
    _counts: dict[int, int] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def names(self) -> list[str]:
        """What ids call each file: its name, or its path below ``folder`` where other files have that name too."""
        counts = Counter(path.name for path in self.paths)
        return [path.name if counts[path.name] == 1 else self.below(path) for path in self.paths]

    @property
    def stored(self) -> list[Path]:
        """All files on disk that the data set consists of."""
        return saved_files(self.paths[0]) if self.suffix == rows.SAVED else list(self.paths)

    def below(self, path: Path) -> str:
        """The path of a file relative to ``folder``, with forward slashes."""
        return path.relative_to(self.folder).as_posix()

    def count(self, number: int) -> int:
        """Rows of file ``number``, unreadable ones included. Raises JobError as ``rows.count_rows``."""
        if number not in self._counts:
            self._counts[number] = rows.count_rows(self.paths[number])
        return self._counts[number]

    def count_all(self) -> int:
        """Rows of all files. Raises JobError as ``rows.count_rows``."""
        return sum(self.count(number) for number in range(len(self.paths)))

    def iter_rows(self, columns: Sequence[str] | None = None, start: int = 0) -> Iterator[tuple[int, int, Row]]:
        """Yield ``(file, row in the file, row)`` from row ``start`` of the data set on, as ``rows.iter_rows`` does.

        Whole files before ``start`` are counted, not read; counting is quick but for CSV and JSON.
        """
        for number, path in enumerate(self.paths):
            if start and start >= self.count(number):
                start -= self.count(number)
                continue
            for row, values in enumerate(rows.iter_rows(path, columns, start), start):
                yield number, row, values
            start = 0


def find_files(path: str) -> DataFiles:
    """The files that a path names. Hidden files are passed over, and so are others of no supported format.

    Raises:
        JobError: no such file, none of a supported format, or files of several formats; a folder of splits.
    """
    given = Path(path)
    if given.is_dir() and not is_saved_dataset(given):
        return _of_one_format(list(given.iterdir()), given, path)
    if given.exists() or not _is_pattern(path):
        suffix = rows.table_suffix(given)
        return DataFiles((given,), given if suffix == rows.SAVED else given.parent, suffix, alone=True)
    found: list[Path] = []
    folders: list[Path] = []
    for pattern in _expand(path):
        matches = [Path(match) for match in glob.glob(pattern, recursive=True)]  # noqa: PTH207, may be absolute
        if not matches:
            raise JobError(f"no file matches {pattern}" + (f", a part of {path}" if pattern != path else ""))
        found += matches
        folders.append(_fixed_folder(pattern))
    return _of_one_format(found, Path(os.path.commonpath(folders)), path)


def absolute_path(path: str) -> str:
    """The path or pattern of a data set with the working folder in front, to find the same files from elsewhere."""
    given = Path(path)
    if given.exists() or not _is_pattern(path):
        return str(given.resolve())
    return path if given.is_absolute() else str(Path(glob.escape(str(Path.cwd())), path))


def _of_one_format(found: list[Path], folder: Path, path: str) -> DataFiles:
    paths = sorted({p for p in found if p.suffix.lower() in FORMATS and not p.name.startswith(".") and p.is_file()})
    if not paths:
        raise JobError(f"{path} holds no data file of a supported format ({', '.join(FORMATS)})")
    suffix = rows.table_suffix(paths[0])
    for other in paths[1:]:
        if rows.table_suffix(other) != suffix:
            hint = f"{path}/*{suffix}" if Path(path).is_dir() else f"*{suffix}"
            raise JobError(
                f"{other} is not of the same format as {paths[0]}; a data set has one: "
                f"choose by a pattern, such as data.path='{hint}'"
            )
    return DataFiles(tuple(paths), folder, suffix, alone=False)


def _is_pattern(path: str) -> bool:
    return glob.has_magic(path) or _BRACES.search(path) is not None


def _fixed_folder(pattern: str) -> Path:
    """The folder up to the first wildcard."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parent.parts))


def _expand(pattern: str) -> Iterator[str]:
    """The patterns that one with braces stands for, as in a shell."""
    pieces = _BRACES.split(pattern)
    choices = [_choices(piece) if k % 2 else [piece] for k, piece in enumerate(pieces)]
    for number, chosen in enumerate(product(*choices)):
        if number == _MAX_PATTERNS:
            raise JobError(f"{pattern} stands for more than {_MAX_PATTERNS:,} files")
        yield "".join(chosen)


def _choices(braces: str) -> Sequence[str]:
    if ".." not in braces or "," in braces:
        return braces.split(",")
    first, last = braces.split("..")
    if abs(int(last) - int(first)) >= _MAX_PATTERNS:
        raise JobError(f"{{{braces}}} stands for more than {_MAX_PATTERNS:,} files")
    width = max(len(first), len(last)) if "0" in (first[:1], last[:1]) else 0
    low, high = sorted((int(first), int(last)))
    return [f"{k:0{width}d}" for k in range(low, high + 1)]
