"""Score a whole data set into a table on disk, in shards that are each written once and never half.

``output_dir`` receives ``manifest.json`` (what is scored with what), ``scores/part-<first row>.parquet`` and, when all
is done, ``summary.json``. A killed job goes on where it stopped and ends in the same bytes as an undisturbed one:
shards are written to a temporary name, synced and renamed, and nothing that influences a score crosses their borders.
"""

import errno
import fcntl
import json
import os
import platform
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from src.curation.scorer import WINDOW, Scored, Scorer
from src.dataset.collate import Pair
from src.dataset.files import absolute_path
from src.dataset.records import (
    DataSpec,
    Record,
    count_records,
    file_fingerprint,
    input_fingerprint,
    read_records,
    resolve_root,
)
from src.errors import JobError
from src.model.checkpoint import locate

_NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "row": pa.int64(),
        "text_index": pa.int32(),
        "score": pa.float64(),
        "status": _NAMES,
        "error": pa.string(),
        "source": pa.string(),
        "text_chars": pa.int32(),
        "width": pa.int32(),
        "height": pa.int32(),
        "template": _NAMES,
        "model": _NAMES,
        "position_scheme": _NAMES,
    }
)
_NAMED_CHANGES = 8  # of thousands of files that may have changed
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


def run_job(spec: DataSpec, scorer: Scorer, model_path: str, output_dir: str | Path, shard_size: int = 2048) -> Summary:
    """Score every pair of a data set, or what an earlier run of the same job has left.

    Args:
        scorer: its image root is set from ``spec``.
        model_path: what the scorer was loaded from, for the record.
        shard_size: records in one part of the table.

    Raises:
        JobError: the data set cannot be read, the folder belongs to another job or is in use, or the disk is full.
    """
    if shard_size < 1:
        raise JobError(f"shard_size must be at least 1, not {shard_size}")
    total = count_records(spec)
    output = Path(output_dir)
    (output / "scores").mkdir(parents=True, exist_ok=True)
    with _sole_user(output):
        _check_manifest(output / "manifest.json", _manifest(spec, scorer, model_path, total, shard_size))
        starts = range(0, total, shard_size)
        open_starts = [start for start in starts if not _part(output, start).exists()]
        if open_starts:
            done = total - sum(min(shard_size, total - start) for start in open_starts)
            with tqdm(total=total, initial=done, unit="record", desc="score", smoothing=0.05) as bar:
                _score_shards(spec, scorer.rooted(resolve_root(spec)), model_path, output, open_starts, shard_size, bar)
        summary = _summarise(output, total)
        _write_json(output / "summary.json", asdict(summary))
    return summary


def _score_shards(
    spec: DataSpec, scorer: Scorer, model_path: str, output: Path, starts: Sequence[int], size: int, bar: tqdm
) -> None:
    wanted = set(starts)
    records = (r for r in read_records(spec, starts[0]) if r.row - r.row % size in wanted)
    told: deque[list[Record]] = deque()

    def windows() -> Iterator[list[Pair]]:
        for window in _windows(records, size):
            told.append(window)
            yield [pair for record in window for pair in _pairs(record)]

    constants = {
        "template": scorer.encoder.template,
        "model": model_path,
        "position_scheme": scorer.model.config.position_scheme,
    }
    rows: list[dict[str, Any]] = []
    errors, shard = 0, starts[0]
    for results in scorer.stream(windows()):
        window = told.popleft()
        start = window[0].row - window[0].row % size
        if start != shard:
            _write_shard(_part(output, shard), rows)
            rows, shard = [], start
        fresh = list(_table_rows(window, iter(results), constants))
        errors += sum(row["status"] != "ok" for row in fresh)
        rows += fresh
        bar.set_postfix(errors=errors, refresh=False)
        bar.update(len(window))
    _write_shard(_part(output, shard), rows)


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


def _table_rows(
    window: Sequence[Record], results: Iterator[Scored], constants: dict[str, str]
) -> Iterator[dict[str, Any]]:
    for record in window:
        texts = record.texts or ("".join(turn["content"] for turn in record.turns if turn["role"] == "assistant"),)
        for index, text in enumerate(texts):
            result = Scored(error=record.error) if record.error else next(results)
            yield {
                "id": f"{record.id}#{index}" if len(texts) > 1 else record.id,
                "row": record.row,
                "text_index": index,
                "score": result.score,
                "status": result.error.kind if result.error else "ok",
                "error": str(result.error) if result.error else None,
                "source": record.source,
                "text_chars": len(text),
                "width": result.width,
                "height": result.height,
                **constants,
            }


def _part(output: Path, start: int) -> Path:
    return output / "scores" / f"part-{start:010d}.parquet"


def _write_shard(path: Path, rows: list[dict[str, Any]]) -> None:
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise JobError(f"disk full at {path}; all earlier shards are safe: free some space and rerun") from error


@contextmanager
def _sole_user(output: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system frees with the process, however it ends."""
    with (output / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JobError(f"another job is writing to {output}") from error
        yield


def _manifest(spec: DataSpec, scorer: Scorer, model_path: str, total: int, shard_size: int) -> dict[str, Any]:
    encoder = scorer.encoder
    root = Path(spec.image_root) if spec.image_root else None
    return {
        "data": {**asdict(spec), "path": absolute_path(spec.path), "image_root": root and str(root.resolve())},
        "input": {**input_fingerprint(spec), "records": total},
        "model": {"path": model_path, "weights": _weights(model_path), "dtype": str(scorer.model.dtype)},
        "template": encoder.template,
        "position_scheme": scorer.model.config.position_scheme,
        "limits": {**asdict(encoder.limits), "max_tokens": encoder.max_tokens},
        "image_size": asdict(encoder.processor.image_processor.size),
        "shard_size": shard_size,
        "token_budget": scorer.token_budget,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS}},
    }


def _weights(model_path: str) -> list[dict[str, Any]] | str:
    """Fingerprints of all that a folder's scores come from; a hub id stands for itself."""
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
    changed = list(_differences(earlier, manifest))
    if changed:
        named = "; ".join(changed[:_NAMED_CHANGES])
        named += f"; and {len(changed) - _NAMED_CHANGES} more" if len(changed) > _NAMED_CHANGES else ""
        raise JobError(f"{path.parent} holds another job's scores; changed: {named}. Use a new output_dir")


def _differences(earlier: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in {**now, **earlier}:
        old, new = earlier.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} (was {old}, now {new})"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _summarise(output: Path, records: int) -> Summary:
    with duckdb.connect() as db:
        parts = sorted(str(part) for part in (output / "scores").glob("part-*.parquet"))
        db.read_parquet(parts).create_view("scores")
        kinds = dict(db.sql("SELECT status::VARCHAR, count(*) FROM scores GROUP BY 1 ORDER BY 2 DESC, 1").fetchall())
        figures = db.sql("SELECT min(score), median(score), avg(score), max(score) FROM scores").fetchall()[0]
    return Summary(records, sum(kinds.values()), kinds.pop("ok", 0), kinds, *figures)
