"""Score a whole data set into a table on disk, in shards that are each written once and never half.

``output_dir`` receives ``manifest.json`` (what is scored with what), ``scores/part-<first row>.parquet`` and, when all
is done, ``summary.json``. A killed job goes on where it stopped and ends in the same bytes as an undisturbed one:
shards are written to a temporary name, synced and renamed, and nothing that influences a score crosses their borders.
"""

import json
import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
from tqdm import tqdm

from src.curation.score_table import differences, named
from src.curation.scorer import WINDOW, Scorer
from src.curation.shards import is_whole, part_path, table_rows, write_shard
from src.dataset.collate import Pair
from src.dataset.files import absolute_path
from src.dataset.records import (
    DataSpec,
    Layout,
    Record,
    file_fingerprint,
    input_fingerprint,
    inspect,
    read_records,
)
from src.dataset.writers import sole_user
from src.errors import JobError
from src.model.checkpoint import locate

_VERSIONS = ("torch", "torchvision", "transformers", "tokenizers", "pillow", "numpy", "pyarrow")


@dataclass(frozen=True)
class Summary:
    """What a job came to; ``pairs = ok + errors``. Scores are over the ok pairs, None if there are none."""

    records: int
    pairs: int
    ok: int
    errors: dict[str, int]
    score_min: float | None
    score_median: float | None
    score_mean: float | None
    score_max: float | None

    def __str__(self) -> str:
        wrong = sum(self.errors.values())
        kinds = "".join(f"\n  {count:>9,} {kind}" for kind, count in self.errors.items())
        return f"{self.ok:,} ok + {wrong:,} errors = {self.pairs:,} pairs of {self.records:,} records{kinds}"


@dataclass(frozen=True)
class Job:
    """A data set to be scored into a folder, shard by shard; any process can score any shard.

    Attributes:
        layout: what ``inspect`` says of ``spec``; it travels with the job, so that no process looks again.
        model_path: what the scorer is loaded from, for the record.
        records: rows of the data set, unusable ones included.
        shard_size: records in one part of the table.
    """

    spec: DataSpec
    layout: Layout
    model_path: str
    output: Path
    records: int
    shard_size: int

    @classmethod
    def of(cls, spec: DataSpec, model_path: str, output_dir: str | Path, shard_size: int = 2048) -> "Job":
        """The job of scoring ``spec``, whose rows are counted. Raises JobError if it cannot be read."""
        if shard_size < 1:
            raise JobError(f"shard_size must be at least 1, not {shard_size}")
        layout = inspect(spec)
        job = cls(spec, layout, model_path, Path(output_dir), layout.files.count_all(), shard_size)
        (job.output / "scores").mkdir(parents=True, exist_ok=True)
        return job

    def claim(self, scorer: Scorer) -> None:
        """Write down what is scored with what; raise JobError if the folder belongs to another job."""
        manifest = _manifest(self.spec, scorer, self.model_path, self.records, self.shard_size)
        _check_manifest(self.output / "manifest.json", manifest)

    def open_shards(self, among: Iterable[int] | None = None) -> list[int]:
        """First rows of the shards that are missing or damaged, and so to be scored.

        Args:
            among: first rows of the shards to look at; None: all, which reads the whole table.
        """
        starts = range(0, self.records, self.shard_size) if among is None else among
        return [start for start in starts if not is_whole(part_path(self.output, start))]

    def progress(self, starts: Sequence[int], done: int = 0, **options: Any) -> tqdm:
        """A bar over the records of these shards, on top of ``done`` records of earlier runs."""
        total = done + sum(self.rows_of(start) for start in starts)
        return tqdm(total=total, initial=done, unit="record", desc="score", smoothing=0.05, **options)

    def done_besides(self, starts: Sequence[int]) -> int:
        """Records in the shards that are not among these."""
        return self.records - sum(self.rows_of(start) for start in starts)

    def rows_of(self, start: int) -> int:
        """Records in the shard that begins with row ``start``."""
        return min(self.shard_size, self.records - start)

    def score(self, scorer: Scorer, starts: Sequence[int], bar: tqdm | None = None) -> int:
        """Score shards, in rising order, each written once it is whole; number of pairs that had an error.

        Raises:
            JobError: the data set cannot be read on, or the disk is full.
        """
        if not starts:
            return 0
        return _score_shards(self, scorer.rooted(self.layout.root), sorted(starts), bar)

    def run(self, load: Callable[[], Scorer]) -> Summary:
        """Score in this process what is open, with the scorer that ``load`` gives once the folder is held.

        Raises:
            JobError: the folder belongs to another job or is in use, or as :meth:`score`.
        """
        with sole_user(self.output):
            scorer = load()
            self.claim(scorer)
            starts = self.open_shards()
            with self.progress(starts, self.done_besides(starts)) as bar:
                self.score(scorer, starts, bar)
            return self.finish()

    def finish(self) -> Summary:
        """Write and return ``summary.json``, the mark of a finished job."""
        for torn in self.output.glob("scores/*.partial"):  # of processes that were killed
            torn.unlink()
        summary = _summarise(self.output, self.records)
        _write_json(self.output / "summary.json", asdict(summary))
        return summary


def run_job(spec: DataSpec, scorer: Scorer, model_path: str, output_dir: str | Path, shard_size: int = 2048) -> Summary:
    """Score every pair of a data set in this process, or what an earlier run of the same job has left.

    Args:
        scorer: its image root is set from ``spec``.
        model_path, shard_size: see :class:`Job`.

    Raises:
        JobError: the data set cannot be read, the folder belongs to another job or is in use, or the disk is full.
    """
    return Job.of(spec, model_path, output_dir, shard_size).run(lambda: scorer)


def _score_shards(job: Job, scorer: Scorer, starts: Sequence[int], bar: tqdm | None) -> int:
    wanted, size = set(starts), job.shard_size
    reading = read_records(job.spec, starts[0], starts[-1] + size, job.layout)
    records = (r for r in reading if r.row - r.row % size in wanted)
    told: deque[list[Record]] = deque()

    def windows() -> Iterator[list[Pair]]:
        for window in _windows(records, size):
            told.append(window)
            yield [pair for record in window for pair in _pairs(record)]

    constants = {
        "template": scorer.encoder.template,
        "model": job.model_path,
        "position_scheme": scorer.model.config.position_scheme,
    }
    rows: list[dict[str, Any]] = []
    errors, shard = 0, starts[0]
    for results in scorer.stream(windows()):
        window = told.popleft()
        start = window[0].row - window[0].row % size
        if start != shard:
            write_shard(part_path(job.output, shard), rows)
            rows, shard = [], start
        fresh = list(table_rows(window, iter(results), constants))
        errors += sum(row["status"] != "ok" for row in fresh)
        rows += fresh
        if bar is not None:
            bar.set_postfix(errors=errors, refresh=False)
            bar.update(len(window))
    write_shard(part_path(job.output, shard), rows)
    return errors


def _windows(records: Iterable[Record], shard_size: int) -> Iterator[list[Record]]:
    """Runs of records with about ``WINDOW`` pairs each, none across the border of a shard."""
    window: list[Record] = []
    pairs = 0
    for record in records:
        if window and (pairs >= WINDOW or record.row // shard_size != window[0].row // shard_size):
            yield window
            window, pairs = [], 0
        window.append(record)
        pairs += len(_pairs(record))
    if window:
        yield window


def _pairs(record: Record) -> list[Pair]:
    if record.error:
        return []
    if record.turns:
        return [{"images": record.images, "turns": record.turns}]
    return [{"images": record.images, "text": text, "question": record.question} for text in record.texts]


def _manifest(spec: DataSpec, scorer: Scorer, model_path: str, total: int, shard_size: int) -> dict[str, Any]:
    encoder = scorer.encoder
    root = Path(spec.image_root) if spec.image_root else None
    return {
        "data": {**asdict(spec), "path": absolute_path(spec.path), "image_root": root and str(root.resolve())},
        "input": {**input_fingerprint(spec), "records": total},
        "model": {"path": model_path, "weights": weights_of(model_path), "dtype": str(scorer.model.dtype)},
        "template": encoder.template,
        "position_scheme": scorer.model.config.position_scheme,
        "limits": {**asdict(encoder.limits), "max_tokens": encoder.max_tokens},
        "image_size": asdict(encoder.processor.image_processor.size),
        "shard_size": shard_size,
        "token_budget": scorer.token_budget,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS}},
    }


def weights_of(model_path: str) -> list[dict[str, Any]] | str:
    """Fingerprints of all that a model folder's output comes from; a hub id stands for itself."""
    folder = Path(locate(model_path))
    kinds = ("*.safetensors", "*.bin", "*.json", "*.jinja")
    files = sorted(file for kind in kinds for file in folder.glob(kind)) if folder.is_dir() else []
    return [file_fingerprint(file) for file in files] or model_path


def _check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a new job; refuse to go on with one that differs, naming what changed."""
    manifest = json.loads(json.dumps(manifest))
    if not path.exists() or not any((path.parent / "scores").glob("part-*.parquet")):
        _write_json(path, manifest)
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise JobError(f"{path} is not readable as JSON: {error}") from error
    changed = list(differences(earlier, manifest))
    if changed:
        raise JobError(f"{path.parent} holds another job's scores; changed: {named(changed)}. Use a new output_dir")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _summarise(output: Path, records: int) -> Summary:
    with duckdb.connect() as db:
        parts = sorted(str(part) for part in (output / "scores").glob("part-*.parquet"))
        db.read_parquet(parts).create_view("scores")
        kinds = dict(db.sql("SELECT status::VARCHAR, count(*) FROM scores GROUP BY 1 ORDER BY 2 DESC, 1").fetchall())
        figures = db.sql("SELECT min(score), median(score), avg(score), max(score) FROM scores").fetchall()[0]
    return Summary(records, sum(kinds.values()), kinds.pop("ok", 0), kinds, *figures)
