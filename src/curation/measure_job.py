"""Measures of all pairs of a finished scoring job, in one Parquet file that ``scores_from`` of a rule can name."""

import json
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from src.curation.measures import MEASURES, OF_IMAGES, Measured, Measurer
from src.curation.near_duplicates import groups_of_features, groups_of_hashes
from src.curation.score_table import check_finished, check_input, data_spec, image_limits, read_manifest
from src.dataset.records import inspect, read_records
from src.dataset.writers import sole_user, sync
from src.errors import JobError
from src.model.clip import Clip

BATCH_ROWS = 8192
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
    whole or not at all. For groups memory grows by 16 bytes a record while
    reading; what grouping takes see :mod:`src.curation.near_duplicates`.

    Args:
        load: gives the CLIP model, if it is needed.
        distance: bits in which perceptual hashes of one group may differ, 0 to 16.
        similarity: cosine of image features of one group, above 0 and below 1.
        facts: kept as JSON in the metadata key ``measures`` of the file, beside ``input`` of the manifest.
        options: ``languages``, ``batch_size``, ``workers`` of :class:`Measurer`.

    Raises:
        JobError: the scoring job has not finished or its data has changed; a bad option; the folder is in use;
            ``output`` is a folder, a file of the data, or a file of other making.
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
    _check_output(Path(output), layout.files.stored)
    measurer = Measurer(measures, load, image_root=layout.root, limits=image_limits(manifest), **options)
    summary = MeasureSummary(Path(output))
    with _workplace(summary.path) as folder:
        seen = _Images(folder)
        bar = tqdm(total=manifest.get("input", {}).get("records"), unit="record", desc="measure", smoothing=0.05)
        with bar, pq.ParquetWriter(folder / "values.parquet", _schema(measures), compression="zstd") as writer:
            rows: list[dict[str, Any]] = []
            for run in measurer.stream(read_records(spec, layout=layout)):
                for measured in run:
                    rows += _rows(measured)
                    seen.add(measured)
                    _count(summary, measured, measurer.measures)
                bar.update(len(run))
                if len(rows) >= BATCH_ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, writer.schema))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, writer.schema))
        groups = {
            GROUPS[name]: seen.spread(find(), summary.records)
            for name, find in (
                ("phash", lambda: groups_of_hashes(seen.hashes(), distance)),
                ("embedding_group", lambda: groups_of_features(seen.features(), similarity)),
            )
            if name in measures
        }
        summary.groups = {column: _sizes(group) for column, group in groups.items()}
        metadata = {"measures": json.dumps(facts or {}), "input": json.dumps(manifest.get("input", {}))}
        whole = _write_joined(folder, groups, metadata)
        sync(whole)
        whole.replace(summary.path)
    return summary


class _Images:
    """What is kept of each opened image until all are known: its row, its hash, and on disk its features."""

    def __init__(self, folder: Path):
        self._rows, self._hashes = array("q"), array("Q")
        self._path, self._dim = folder / "features.f16", 0
        self._file = self._path.open("wb")

    def add(self, measured: Measured) -> None:
        if measured.phash is None and measured.feature is None:
            return
        self._rows.append(measured.record.row)
        if measured.phash is not None:
            self._hashes.append(measured.phash)
        if measured.feature is not None:
            self._dim = len(measured.feature)
            self._file.write(measured.feature.tobytes())

    def hashes(self) -> np.ndarray:
        return np.array(self._hashes, np.uint64)

    def features(self) -> np.ndarray:
        self._file.close()
        if not self._rows:
            return np.empty((0, 1), np.float16)
        return np.memmap(self._path, np.float16, "r", shape=(len(self._rows), self._dim))

    def spread(self, groups: np.ndarray, records: int) -> np.ndarray:
        """From positions among the opened images to rows: (records,) the first row of each one's group, -1 for none."""
        rows = np.array(self._rows, np.int64)
        spread = np.full(records, -1, np.int64)
        spread[rows] = np.where(groups < 0, -1, rows[groups])
        return spread


def _schema(measures: Sequence[str]) -> pa.Schema:
    columns = {name: kind for measure in MEASURES if measure in measures for name, kind in COLUMNS[measure].items()}
    return pa.schema({"id": pa.string(), "row": pa.int64(), **columns})


def _rows(measured: Measured) -> Iterator[dict[str, Any]]:
    for name, language, cosine in zip(measured.ids, measured.languages, measured.clip_scores, strict=True):
        code, probability = language or (None, None)
        yield {
            "id": name,
            "row": measured.record.row,
            "clip_score": cosine,
            "image_entropy": measured.entropy,
            "language": code,
            "language_probability": probability,
            "phash": None if measured.phash is None else f"{measured.phash:016x}",
        }


def _count(summary: MeasureSummary, measured: Measured, measures: set[str]) -> None:
    summary.records += 1
    summary.pairs += len(measured.ids)
    summary.not_finite += measured.not_finite
    if measured.error:
        summary.unreadable[measured.error.kind] += 1
    elif measured.record.images and measures & OF_IMAGES:
        summary.images += 1
    if "language" in measures:
        summary.languages.update(language and language[0] for language in measured.languages)


def _sizes(group: np.ndarray) -> tuple[int, int, int]:
    sizes = np.unique_counts(group[group >= 0]).counts
    several = sizes[sizes > 1]
    return len(several), int(several.sum()), int(sizes.max(initial=0))


def _write_joined(folder: Path, groups: dict[str, np.ndarray], metadata: dict[str, str]) -> Path:
    """The values with their groups beside them, in place of the row."""
    values = pq.ParquetFile(folder / "values.parquet")
    kept = [column for column in values.schema_arrow if column.name != "row"]
    schema = pa.schema([*kept, *(pa.field(column, pa.int64()) for column in groups)], metadata)
    path = folder / "measures.parquet"
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in values.iter_batches(BATCH_ROWS):
            of_rows = (group[batch["row"].to_numpy()] for group in groups.values())
            columns = [batch[column.name] for column in kept] + [pa.array(of, mask=of < 0) for of in of_rows]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return path


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


@contextmanager
def _workplace(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` for what is not whole yet; what a killed run has left of it goes first."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.parent / f".{output.name}.partial"
    with sole_user(output.parent):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
