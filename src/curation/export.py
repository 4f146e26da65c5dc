"""Kept pairs in the format that a trainer reads, whatever format the data set has."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

import pyarrow.parquet as pq
import yaml
from omegaconf import OmegaConf
from tqdm import tqdm

from src.curation.score_table import check_input, data_spec, image_limits, read_manifest
from src.curation.select import kept_rows, read_facts, scores_of, subset_file
from src.dataset import exports
from src.dataset.export_pairs import Naming, Pair, image_file, kept_pairs, messages
from src.dataset.images import FORMATS as IMAGE_FORMATS
from src.dataset.records import read_records
from src.dataset.spec import DataSpec, Layout, inspect
from src.dataset.writers import remove, sole_user, sync
from src.errors import JobError, RecordError

Format = Literal["csv", "sharegpt", "datasets", "webdataset"]
FORMATS: tuple[Format, ...] = get_args(Format)
IMAGES = "images"


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        name: of the file, or of the folder (datasets, webdataset), and of the entry in ``dataset_info.json``; letters,
            digits, ``-`` and ``_``.
        copy_images: csv and sharegpt: copy images that are files into the export; those in the data always are.
        image_root: csv and sharegpt: a folder that holds the images, to which their paths shall be relative. Unless
            given, they are relative to the image root of the data (csv), or to the output folder if it holds the
            images, and absolute if not (sharegpt, as LLaMA-Factory resolves them).
        question: sharegpt: what captions answer where a record has no question.
        shard_size: webdataset: samples in a tar.
    """

    name: str = "kept"
    copy_images: bool = False
    image_root: str | Path | None = None
    question: str = "Describe the image."
    shard_size: int = 10_000


@dataclass(frozen=True)
class Export:
    """What was exported: ``kept = written + left out``, the latter by kind of error.

    ``path`` is what a trainer is given, ``image_root`` the folder that image paths in it are relative to, or that holds
    them where they are absolute (None: the images are within), ``reasons`` the file that names each pair that was left
    out, if there are any.
    """

    path: Path
    image_root: Path | None
    reasons: Path | None
    kept: int
    written: int
    left_out: dict[str, int]

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.left_out.items())
        missing = sum(self.left_out.values())
        return f"{self.written:,} written + {missing:,} left out = {self.kept:,} kept pairs" + (kinds and f" ({kinds})")


def export_subset(
    subset: str | Path,
    to: Format,
    output: str | Path | None = None,
    options: ExportOptions | None = None,
    scores_dir: str | Path | None = None,
    progress: bool = True,
) -> Export:
    """Write the kept pairs in another format; a row, conversation or sample a pair.

    ========== ============================================================== =====================================
    format     in ``output``                                                  read by
    ========== ============================================================== =====================================
    csv        ``<name>.csv``, images below ``images/<name>``                 CLIP training
    sharegpt   ``<name>.json``, images likewise, ``dataset_info.json``        LLaMA-Factory
    datasets   ``<name>/``                                                    ``datasets.load_from_disk``
    webdataset ``<name>/000000.tar`` ...                                      webdataset, open_clip
    ========== ============================================================== =====================================

    Every image is decoded once. A pair that cannot be written (its image is damaged or gone, or the format has no
    place for several images) is left out, counted, and named with the reason in ``<name>.left_out.jsonl``;
    ``<name>.export.yaml`` has the rule and the counts. An earlier export of the same name and format is replaced, and
    nothing else: the notes list its parts. What is written appears under its name when it is complete.

    Args:
        subset: ``subset_ids.parquet`` of select_subset, or its folder.
        to: the format.
        output: a folder; unless given, one named as the format beside the subset.
        options: see there.
        scores_dir: the score table; unless given, the one that the subset names.
        progress: show a bar.

    Raises:
        JobError: no such selection or data, data that has changed since it was scored, bad options, other things in
            the way (kept images of the data among them), another export into ``output``, nothing that could be written.
    """
    options = options or ExportOptions()
    file = subset_file(subset)
    folder = Path(scores_dir) if scores_dir is not None else scores_of(file)
    if folder is None:
        raise JobError(f"{file} does not say which score table it is from; give scores_dir")
    target = Path(output) if output is not None else file.parent / to
    _check(to, options)
    read_facts(file)
    manifest = read_manifest(folder)
    check_input(manifest, data_spec(manifest))
    target.mkdir(parents=True, exist_ok=True)
    with sole_user(target):
        return _export(file, to, target, options, folder, progress)


def _export(file: Path, to: Format, target: Path, options: ExportOptions, folder: Path, progress: bool) -> Export:
    rule, manifest = read_facts(file), read_manifest(folder)
    spec = data_spec(manifest)
    layout = inspect(spec)
    plan = _plan(to, options, target, layout)
    notes = target / f"{options.name}.export.yaml"
    reasons = target / f"{options.name}.left_out.jsonl"
    parts = [notes.name, *plan.parts, reasons.name]
    ours = _earlier_parts(notes, to) & {*parts, f"{IMAGES}/{options.name}"}
    _refuse_strangers(target, [part for part in parts if part not in ours], to)
    replaced = [(target / part).resolve() for part in {*parts, *ours}]
    _refuse_inputs(layout.files.stored, replaced)
    _refuse_images(spec, layout, [place for place in replaced if place.is_dir()], progress)
    kept = pq.read_metadata(file).num_rows
    if to == "sharegpt":  # now rather than after hours, should it refuse the name
        exports.registry_with(target, options.name, plan.parts[0])
    staging = target / f".{options.name}.partial"
    remove(staging)
    staging.mkdir(parents=True)
    try:
        with (staging / reasons.name).open("w", encoding="utf-8") as writing:
            log = _Log(writing, file, tqdm(total=kept, desc=to, unit="pair", disable=not progress))
            given = (plan.naming, log.leave_out, plan.check, image_limits(manifest), plan.formats)
            pairs = kept_pairs(spec, kept_rows(file), layout, *given)
            plan.write(log.count(pairs), staging)
            log.close()
        if not log.left_out:
            remove(staging / reasons.name)
        counts = {"kept": kept, "written": log.written, "left_out": dict(log.left_out)}
        made = [part for part in parts if part == notes.name or (staging / part).exists()]
        facts = {"format": to, "data": spec.path, "scores_dir": str(folder), "rule": rule, **counts, "parts": made}
        (staging / notes.name).write_text(OmegaConf.to_yaml(facts), encoding="utf-8")
        for part in ours.difference(made):
            remove(target / part)
        _put_in_place(staging, target, made)
        if to == "sharegpt":  # which others may have written to meanwhile
            _write_json(target / exports.REGISTRY, exports.registry_with(target, options.name, plan.parts[0]))
    finally:
        remove(staging)
    path = target / plan.parts[0]
    return Export(path, plan.image_root, reasons if log.left_out else None, kept, log.written, dict(log.left_out))


@dataclass(frozen=True)
class _Plan:
    """``parts``: what the export consists of below the output folder, the file or folder for the trainer first.

    Images of other formats than ``formats`` become PNG.
    """

    parts: tuple[str, ...]
    naming: Naming
    check: Callable[[Pair], object]
    write: Callable[[Iterator[Pair], Path], None]
    image_root: Path | None = None
    formats: tuple[str, ...] = IMAGE_FORMATS


def _plan(to: Format, options: ExportOptions, target: Path, layout: Layout) -> _Plan:
    name, root = options.name, layout.root
    check: Callable[[Pair], object] = attrgetter("image")
    as_files = Naming(root, f"{IMAGES}/{name}", by_row=layout.encoded)
    if to == "datasets":
        talk = layout.conversations
        return _Plan((name,), as_files, check, lambda pairs, at: exports.write_image_dataset(pairs, at / name, talk))
    if to == "webdataset":
        size = options.shard_size
        return _Plan(
            (name,),
            as_files,
            check,
            lambda pairs, at: exports.write_webdataset(pairs, at / name, size),
            formats=exports.WEB_FORMATS,
        )
    copied = layout.encoded or options.copy_images
    if layout.encoded and options.image_root is not None:
        raise JobError("the images lie within the data and become files of the export: image_root cannot be given")
    if copied:
        naming, image_root = as_files, target
    elif options.image_root is not None:
        naming, image_root = Naming(Path(options.image_root)), Path(options.image_root)
    elif to == "sharegpt" and root.resolve().is_relative_to(target.resolve()):
        naming, image_root = Naming(target), target
    else:
        naming, image_root = Naming(root if to == "csv" else None), root
    table, question = f"{name}.{'csv' if to == 'csv' else 'json'}", options.question

    def write(pairs: Iterator[Pair], at: Path) -> None:
        store = at if copied else None
        if to == "csv":
            exports.write_clip_csv(pairs, at / table, store)
        else:
            exports.write_sharegpt(pairs, at / table, store, question)

    if to == "sharegpt":
        check = partial(messages, question=question)
    parts = (table, f"{IMAGES}/{name}") if copied else (table,)
    return _Plan(parts, naming, check, write, image_root)


class _Log:
    """Counts, and writes the pairs left out as they come, so that any number of them fits into memory."""

    def __init__(self, file: TextIO, subset: Path, bar: "tqdm[Any]"):
        self.written = 0
        self.left_out: Counter[str] = Counter()
        self._file, self._subset, self._bar = file, subset, bar
        self._first = ""

    def leave_out(self, pair: str, error: RecordError) -> None:
        self._first = self._first or f"{pair}: {error}"
        self._file.write(json.dumps({"id": pair, "kind": error.kind, "error": str(error)}) + "\n")
        self.left_out[error.kind] += 1
        self._bar.set_postfix(left_out=self.left_out.total(), refresh=False)
        self._bar.update()

    def count(self, pairs: Iterator[Pair]) -> Iterator[Pair]:
        for pair in pairs:
            yield pair
            self.written += 1
            self._bar.update()

    def close(self) -> None:
        """Raises JobError when not one pair was written, or not all pairs of the bar were counted."""
        self._bar.close()
        missing = self.left_out.total()
        if self.written + missing != self._bar.total:
            raise JobError(f"{self._subset} has {self._bar.total} pairs; {self.written} written, {missing} left out")
        if not self.written:
            raise JobError(f"none of the {missing:,} pairs of {self._subset} can be written; {self._first}")


def _check(to: str, options: ExportOptions) -> None:
    if to not in FORMATS:
        raise JobError(f"unknown format {to!r}; there are {', '.join(FORMATS)}")
    plain = options.name.replace("-", "").replace("_", "")
    if not (plain.isascii() and plain.isalnum()) or options.name in (IMAGES, "dataset_info"):
        raise JobError(f"bad name {options.name!r}: letters, digits, - and _ only, and neither images nor dataset_info")
    if options.shard_size < 1:
        raise JobError(f"shard_size must be at least 1, not {options.shard_size}")
    if options.image_root is not None and not Path(options.image_root).is_dir():
        raise JobError(f"no such image root: {options.image_root}")
    if (options.copy_images or options.image_root is not None) and to not in ("csv", "sharegpt"):
        raise JobError(f"{to} has its images within: no copy_images and no image_root")
    if options.copy_images and options.image_root is not None:
        raise JobError("copied images lie in the export: copy_images and image_root exclude one another")


def _earlier_parts(notes: Path, to: str) -> set[str]:
    """What an earlier export of this name and format has written, which may be replaced."""
    with suppress(OSError, TypeError, KeyError, UnicodeDecodeError, yaml.YAMLError):
        facts = yaml.safe_load(notes.read_text(encoding="utf-8"))
        if facts["format"] == to:
            return {notes.name, *map(str, facts["parts"])}
    return set()


def _refuse_strangers(target: Path, parts: list[str], to: str) -> None:
    for part in parts:
        if (target / part).exists():
            raise JobError(
                f"{target / part} is in the way, and no earlier export to {to} wrote it; choose another output or name"
            )


def _refuse_inputs(inputs: list[Path], places: list[Path]) -> None:
    for place in (path.resolve() for path in places):
        if any(path == place or place in path.parents for path in (path.resolve() for path in inputs)):
            raise JobError(f"the export would replace the data {place}; choose another output or name")


def _refuse_images(spec: DataSpec, layout: Layout, places: list[Path], progress: bool) -> None:
    """Raise JobError if any image of the data, kept or not, lies in a folder that will be replaced."""
    for record in tqdm(read_records(spec, layout=layout), "looking at images", disable=not progress) if places else ():
        for source in record.images:
            with suppress(RecordError):  # said where it is exported, if it is
                file = image_file(source, layout.root)
                if file is not None and (place := next((p for p in places if file.is_relative_to(p)), None)):
                    raise JobError(f"the export would replace {place}, where the image {file} of the data lies")


def _put_in_place(staging: Path, target: Path, parts: list[str]) -> None:
    """Move complete parts to their names, the notes first: they say that the others are ours to replace."""
    for part in parts:
        made, place = staging / part, target / part
        if place.is_dir():
            remove(place)  # a folder cannot be replaced in one step
        place.parent.mkdir(parents=True, exist_ok=True)
        for path in [made, *made.glob("*")]:
            sync(path)
        made.replace(place)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(partial)
    partial.replace(path)
