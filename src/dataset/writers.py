"""Write the kept rows of a data set in the data set's own format and files, with its scores."""

import csv
import fcntl
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from src.dataset import rows
from src.dataset.arrow_writers import write_dataset, write_parquet
from src.dataset.files import DataFiles
from src.dataset.kept import Kept, Scores, pick, score_name
from src.dataset.spec import DataSpec, Layout, inspect
from src.dataset.tars import add_member, samples
from src.errors import JobError


def write_subset(spec: DataSpec, kept: Kept, output_dir: str | Path) -> Path:
    """Write the kept rows in a stream and return the path of what was written in ``output_dir``.

    One file gives ``kept<suffix>``, a folder of the datasets library the folder ``kept``, and so does a folder or a
    pattern: there, each file that keeps something has its name, and its place below the folder. An earlier ``kept``
    is replaced.

    All columns are kept and ``score`` is added (``score_rs`` if the input has one, and so on). Where the caption
    is a list (Parquet, saved data sets, JSON), the list is cut to the kept captions, and the score is a list beside
    it. In a tar all members of a kept sample stay as they are, byte for byte, and a member ``<key>.score.json`` holds
    the score, or where the caption is a list, a list of as many, null for those that are not kept. What is written
    appears under its name only when it is complete.

    Args:
        spec: the data set.
        kept: ``(row, [(text index, score), ...])`` in strictly rising row order; one entry where the record has
            one text or a conversation.
        output_dir: made if missing.

    Raises:
        JobError: as ``inspect``; the output would replace the input, or a folder ``kept`` of other things; a kept
            row is not in the input or cannot be read.
        ValueError: rows do not rise.
    """
    layout = inspect(spec)
    data = layout.files
    in_folder = not data.alone or data.suffix == rows.SAVED
    target = Path(output_dir) / ("kept" if in_folder else f"kept{data.suffix}")
    _check_replaceable(target, data)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        remove(partial)
        if data.alone:
            _write_file(data.paths[0], layout, _score_name(layout), kept, partial)
        else:
            _write_files(layout, kept, partial)
        for path in [*partial.rglob("*"), partial]:
            sync(path)
        if in_folder:
            remove(target)  # a folder cannot be replaced in one step
        partial.replace(target)
    finally:
        remove(partial)
    return target


def _write_files(layout: Layout, kept: Kept, folder: Path) -> None:
    data, name = layout.files, _score_name(layout)
    folder.mkdir()
    for number, group in groupby(_by_file(data, kept), key=itemgetter(0)):
        path = data.paths[number]
        target = folder / data.below(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_file(path, layout, name, ((row, scores) for _, row, scores in group), target)


def _write_file(path: Path, layout: Layout, name: str, kept: Kept, target: Path) -> None:
    match layout.files.suffix:
        case ".parquet":
            write_parquet(path, layout.text_column, kept, target)
        case ".json" | ".jsonl":
            _write_json(path, layout, name, kept, target)
        case ".tar":
            _write_tar(path, layout, name, kept, target)
        case rows.SAVED:
            write_dataset(path, layout.text_column, kept, target)
        case suffix:
            _write_csv(path, rows.DELIMITERS[suffix], kept, target)


def _by_file(data: DataFiles, kept: Kept) -> Iterator[tuple[int, int, Scores]]:
    """``(file, row in the file, scores)`` of rows that are numbered through."""
    number, first, here = 0, 0, -1
    for row, scores in kept:
        if row <= here:
            raise ValueError(f"kept rows must rise: {row} after {here}")
        here = row
        while number < len(data.paths) and row >= first + data.count(number):
            first += data.count(number)
            number += 1
        if number == len(data.paths):
            raise JobError(f"row {row} cannot be kept: no such row. Has {data.folder} changed since scoring?")
        yield number, row - first, scores


def _score_name(layout: Layout) -> str:
    """A name for the scores that no row of any file uses; headers are alike in all files and looked at one by one."""
    match layout.files.suffix:
        case ".json" | ".jsonl":
            return score_name({key for *_, row in layout.files.iter_rows() if isinstance(row, dict) for key in row})
        case ".tar":
            members = {name for path in layout.files.paths for sample in samples(path) for name in sample.members}
            return score_name(name.removesuffix(".json") for name in members)
        case _:
            return score_name(rows.column_names(layout.files.paths[0]))


def _check_replaceable(target: Path, data: DataFiles) -> None:
    """Refuse to write over the input, or to remove a folder that holds anything but an earlier subset."""
    inputs = [path.resolve() for path in data.stored]
    if any(path == target.resolve() or target.resolve() in path.parents for path in inputs):
        raise JobError(f"the kept data would replace the input {target}; choose another output folder")
    if not target.is_dir():
        return
    ours = (".arrow", ".json") if data.suffix == rows.SAVED else (data.suffix,)
    others = (path for path in target.rglob("*") if path.is_file() and path.suffix.lower() not in ours)
    if (other := next(others, None)) is not None:
        raise JobError(f"{other} is no part of an earlier subset; move {target} away or choose another output folder")


def sync(path: Path) -> None:
    """Have the system write a file to disk now; folders are passed over."""
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


@contextmanager
def sole_user(output: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system frees with the process, however it ends.

    Raises:
        JobError: another process holds it.
    """
    with (output / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JobError(f"another job is writing to {output}") from error
        yield


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link alone, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def csv_writer(file: TextIO, delimiter: str = ",") -> Any:
    """A writer of the csv module whose rows ``rows.csv_lists`` reads back, with ``\\n`` at the end of lines."""
    # The module quotes a lone \r only if it is part of the line end; the file's line end is \n all the same.
    lines = SimpleNamespace(write=lambda line: file.write(line.removesuffix("\r\n") + "\n"))
    return csv.writer(lines, delimiter=delimiter, lineterminator="\r\n")


def _write_csv(path: Path, delimiter: str, kept: Kept, target: Path) -> None:
    table = rows.csv_lists(path, delimiter)
    header = rows.csv_header(path, delimiter)
    with target.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv_writer(file, delimiter)
        writer.writerow([*header, score_name(header)])
        for row, scores in pick(islice(table, 1, None), kept, path):
            writer.writerow([*row, repr(scores[0][1])])


def _write_json(path: Path, layout: Layout, name: str, kept: Kept, target: Path) -> None:
    lines = layout.files.suffix == ".jsonl"
    with target.open("w", encoding="utf-8", newline="") as file:
        file.write("" if lines else "[")
        between = "" if lines else "\n"
        for row, scores in pick(rows.iter_rows(path), kept, path):
            captions = None if layout.conversations else row.get(layout.text_column)
            added: dict[str, Any] = {name: scores[0][1]}
            if isinstance(captions, list):
                added = {layout.text_column: [captions[k] for k, _ in scores], name: [score for _, score in scores]}
            text = json.dumps(row | added, ensure_ascii=False)
            # Lone surrogates in columns that are not used can be written only as escapes.
            file.write(between + (text if rows.is_utf8(text) else json.dumps(row | added)))
            file.write("\n" if lines else "")
            between = "" if lines else ",\n"
        file.write("" if lines else "\n]\n")


def _write_tar(path: Path, layout: Layout, name: str, kept: Kept, target: Path) -> None:
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for sample, scores in pick(samples(path), kept, path):
            sample.copy_to(archive)
            row = sample.row([layout.text_column])
            captions = row.get(layout.text_column) if isinstance(row, dict) and not layout.conversations else None
            score: Any = scores[0][1]
            if isinstance(captions, list):
                score = [dict(scores).get(k) for k in range(len(captions))]
            content = json.dumps(score).encode()
            member = tarfile.TarInfo(f"{sample.key}.{name}.json")
            member.size, member.mtime = len(content), next(iter(sample.members.values())).mtime
            add_member(archive, member, io.BytesIO(content))
