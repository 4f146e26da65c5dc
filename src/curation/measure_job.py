"""Measures of all pairs of a finished scoring job, in one Parquet file that ``scores_from`` of a rule can name."""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from src.curation.measure_parts import SCHEMA, Parts, part_row
from src.curation.measures import MEASURES, Measurer
from src.curation.near_duplicates import groups_of_features, groups_of_hashes
from src.curation.score_table import (
    NOT_FINITE,
    check_finished,
    check_input,
    data_spec,
    image_limits,
    read_manifest,
)
from src.curation.shards import telling_of_full_disk
from src.dataset.records import DataSpec, Layout, input_fingerprint, inspect, read_records
from src.dataset.writers import remove, sole_user, sync
from src.errors import JobError
from src.model.clip import Clip

COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "clip_score": {"clip_score": pa.float64()},
    "image_entropy": {"image_entropy": pa.float64()},
    "language": {"language": pa.string(), "language_probability": pa.float64()},
    "phash": {"phash": pa.string()},
    "embedding_group": {},
}
GROUPS = {"phash": "phash_group", "embedding_group": "embedding_group"}


@dataclass
class MeasureSummary:
    """What measuring came to.

    Attributes:
        images: records whose first image was opened; ``unreadable`` counts the others by kind of error.
        not_finite: images whose CLIP features are not finite numbers: their CLIP score and embedding group are null.
        languages: pairs by language, None for those without one.
        groups: by column, (groups of more than one record, records in them, records of the largest).
    """

    path: Path
    records: int = 0
    pairs: int = 0
    images: int = 0
    not_finite: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    languages: Counter[str | None] = field(default_factory=Counter)
    groups: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        bad = "".join(f"\n  {count:>9,} {kind}" for kind, count in self.unreadable.most_common())
        lines = [f"{self.pairs:,} pairs of {self.records:,} records"]
        if self.images or self.unreadable:
            lines.append(f"{self.images:,} images opened, {self.unreadable.total():,} not{bad}")
        if self.not_finite:
            lines.append(f"{self.not_finite:,} not_finite: images whose CLIP features are not finite numbers")
        if self.languages:
            named = [f"{count:,} {code or 'without one'}" for code, count in self.languages.most_common(12)]
            lines.append(f"languages  {', '.join(named)}")
        for column, (groups, records, largest) in self.groups.items():
            lines.append(
                f"{column}  {groups:,} groups of several, {records:,} records in them, at most {largest:,} in one"
            )
        return "\n".join(lines)


def measure_pairs(
    scores_dir: str | Path,
    output: str | Path,
    measures: Sequence[str],
    load: Callable[[], Clip],
    distance: int = 6,
    similarity: float = 0.95,
    facts: dict[str, Any] | None = None,
    **options: Any,
) -> MeasureSummary:
    """Write the Parquet file ``output``: ``id`` and the columns of ``measures``, a row for each row of the score table.

    A value that cannot be made is null: all of the image's for a text-only pair or an image that does not open, the
    language of a text without letters. Groups (int64) are named by the smallest row in them. The file is there as a
    whole or not at all. For groups memory grows by 16 bytes a record; what grouping takes see
    :mod:`src.curation.near_duplicates`.

    A run that was killed leaves its :class:`Parts` in ``.<name of output>.partial`` beside the output. The next one
    with the same settings goes on from them and ends in the same file; with others it clears them and logs what has
    changed. Only ``distance`` and ``similarity``, which the last step alone needs, may differ. For ``embedding_group``
    the folder takes 2 bytes of disk for each dimension of each image's features, and in the last step twice that.

    Args:
        load: gives the CLIP model, if it is needed.
        distance: bits in which perceptual hashes of one group may differ, 0 to 16.
        similarity: cosine of image features of one group, above 0 and below 1.
        facts: kept as JSON in the metadata key ``measures`` of the file, beside ``input`` of the manifest.
        options: ``languages``, ``batch_size``, ``workers`` of :class:`Measurer`.

    Raises:
        JobError: the scoring job has not finished or its data has changed; a bad option; the folder is in use;
            ``output`` is a folder, a file of the data, or a file of other making; the disk is full.
    """
    if not 0 <= distance <= 16:
        raise JobError(f"phash.distance must be 0 to 16 of 64 bits, not {distance}")
    if not 0 < similarity < 1:
        raise JobError(f"embedding.similarity must be above 0 and below 1, not {similarity:g}")
    check_finished(scores_dir)
    manifest = read_manifest(scores_dir)
    spec = data_spec(manifest)
    check_input(manifest, spec)
    layout = inspect(spec)
    output = Path(output)
    _check_output(output, layout.files.stored)
    measurer = Measurer(measures, load, image_root=layout.root, limits=image_limits(manifest), **options)
    given = manifest.get("input", {})
    records = given["records"] if "records" in given else layout.files.count_all()
    parts = Parts(output.parent / f".{output.name}.partial", records, measurer.batch_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    with sole_user(output.parent), telling_of_full_disk(parts.folder):
        parts.claim({"data": manifest["data"], "input": given or input_fingerprint(spec), **measurer.settings()})
        _measure_missing(parts, measurer, spec, layout)
        seen = _Images(parts)
        groups = {
            GROUPS[name]: seen.spread(find())
            for name, find in (
                ("phash", lambda: groups_of_hashes(seen.hashes(), distance)),
                ("embedding_group", lambda: groups_of_features(seen.features(), similarity)),
            )
            if name in measures
        }
        metadata = {"measures": json.dumps(facts or {}), "input": json.dumps(given)}
        whole, summary = _join(parts, measurer.measures, groups, metadata)
        sync(whole)
        whole.replace(output)
        remove(parts.folder)
    summary.path = output
    return summary


def _measure_missing(parts: Parts, measurer: Measurer, spec: DataSpec, layout: Layout) -> None:
    """Measure the records of the parts that are not there, and no others; write each part once it is whole."""
    starts = parts.missing()
    if not starts:
        return
    wanted = set(starts)
    reading = read_records(spec, starts[0], starts[-1] + parts.size, layout)
    records = (record for record in reading if parts.first_row(record.row) in wanted)
    done = parts.records - sum(map(parts.rows_of, starts))
    rows: list[dict[str, Any]] = []
    with tqdm(total=parts.records, initial=done, unit="record", desc="measure", smoothing=0.05) as bar:
        # a part is whole runs, so none has records of two parts
        for run in measurer.stream(records):
            rows += map(part_row, run)
            bar.update(len(run))
            start = parts.first_row(rows[0]["row"])
            if len(rows) == parts.rows_of(start):
                parts.write(start, rows)
                wanted.remove(start)
                rows = []
    if wanted:
        raise JobError(f"{spec.path} does not have the {parts.records:,} records that were scored. Score it again")


class _Images:
    """What grouping needs of each opened image: its row, its hash, and on disk its features."""

    def __init__(self, parts: Parts):
        self._records = parts.records
        self._rows, self._hashes = array("q"), array("Q")
        self._path, self._dim = parts.folder / "features.partial", 0
        with self._path.open("wb") as file:
            for part in parts.read(["row", "phash", "feature"]):
                seen = part.filter(pc.or_(pc.is_valid(part["phash"]), pc.is_valid(part["feature"])))
                self._rows.frombytes(seen["row"].to_numpy().tobytes())
                self._hashes.frombytes(seen["phash"].drop_null().to_numpy().tobytes())
                for feature in seen["feature"].drop_null().to_pylist():
                    self._dim = len(feature) // np.dtype(np.float16).itemsize
                    file.write(feature)

    def hashes(self) -> np.ndarray:
        return np.array(self._hashes, np.uint64)

    def features(self) -> np.ndarray:
        if not self._rows:
            return np.empty((0, 1), np.float16)
        return np.memmap(self._path, np.float16, "r", shape=(len(self._rows), self._dim))

    def spread(self, groups: np.ndarray) -> np.ndarray:
        """From positions among the opened images to rows: (records,) the first row of each one's group, -1 for none."""
        rows = np.array(self._rows, np.int64)
        spread = np.full(self._records, -1, np.int64)
        spread[rows] = np.where(groups < 0, -1, rows[groups])
        return spread


def _sizes(group: np.ndarray) -> tuple[int, int, int]:
    sizes = np.unique_counts(group[group >= 0]).counts
    several = sizes[sizes > 1]
    return len(several), int(several.sum()), int(sizes.max(initial=0))


def _join(
    parts: Parts, measures: set[str], groups: dict[str, np.ndarray], metadata: dict[str, str]
) -> tuple[Path, MeasureSummary]:
    """The file of all pairs, with the groups of their records, and what it came to."""
    columns = {name: kind for measure in MEASURES if measure in measures for name, kind in COLUMNS[measure].items()}
    schema = pa.schema({"id": pa.string(), **columns, **dict.fromkeys(groups, pa.int64())}, metadata)
    path = parts.folder / "measures.partial"
    summary = MeasureSummary(path, groups={column: _sizes(group) for column, group in groups.items()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in parts.read([column for column in SCHEMA.names if column != "feature"]):
            pairs = _pairs(part, groups)
            writer.write_table(pa.table({name: pairs[name] for name in schema.names}, schema))
            _count(summary, part, pairs, measures)
    return path, summary


def _pairs(part: pa.RecordBatch, groups: dict[str, np.ndarray]) -> dict[str, pa.Array]:
    """The columns of a part's pairs."""
    of = part["pairs"].value_parent_indices()
    pairs = part["pairs"].flatten()
    hashes = [None if number is None else f"{number:016x}" for number in part["phash"].to_pylist()]
    columns = dict(zip(pairs.type.names, pairs.flatten(), strict=True))
    columns["image_entropy"] = part["image_entropy"].take(of)
    columns["phash"] = pa.array(hashes, pa.string()).take(of)
    rows = part["row"].take(of).to_numpy()
    return columns | {name: pa.array(group[rows], mask=group[rows] < 0) for name, group in groups.items()}


def _count(summary: MeasureSummary, part: pa.RecordBatch, pairs: dict[str, pa.Array], measures: set[str]) -> None:
    summary.records += len(part)
    summary.pairs += len(pairs["id"])
    images = _counts(part["image"].drop_null())
    summary.not_finite += images[NOT_FINITE]
    summary.images += images.pop("ok", 0) + images.pop(NOT_FINITE, 0)
    summary.unreadable += images
    if "language" in measures:
        summary.languages += _counts(pairs["language"])


def _counts(values: pa.Array) -> Counter:
    return Counter({found["values"]: found["counts"] for found in values.value_counts().to_pylist()})


def _check_output(output: Path, inputs: Sequence[Path]) -> None:
    """Refuse, before hours of work, to replace what is no earlier file of measures."""
    if output.is_dir():
        raise JobError(f"output must be a file, and {output} is a folder")
    if output.resolve() in {path.resolve() for path in inputs}:
        raise JobError(f"the measures would replace the data {output}; choose another output")
    if output.exists():
        try:
            ours = b"measures" in (pq.read_schema(output).metadata or {})
        except (OSError, pa.ArrowException):
            ours = False
        if not ours:
            raise JobError(f"{output} is in the way, and is no earlier file of measures; choose another output")
