"""One JSON file per model, set and task: how results are written, read again, and what they hold.

========== ===========================================================================================================
key        value
========== ===========================================================================================================
schema     version of this form, 1
task       ``zero_shot``, ``retrieval`` ...
set        name of the data set
model      path or hub id that the model was loaded from
metrics    by name ``{"value", "low", "high", "n"}``: a share in 0..1, its 95 % interval and how many it is of; the
           value is null where a metric is not defined; with ``"unit"`` it is no share, and less is better
counts     ``records = ok + the sum of errors``, ``errors`` by kind, and what else was counted
settings   what was measured how: paths, templates, batch size, type of weights ...
versions   of Python and of the libraries that decide about figures
created    time of writing, UTC; null where results are to be compared byte by byte
details    tables of the task (per class, confusion matrix, the first unusable records ...)
========== ===========================================================================================================
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import JobError
from src.evaluation.reward_accuracy import wilson

SCHEMA = 1
UNUSABLE_SHOWN = 100  # records named in the details
_VERSIONS = ("torch", "torchvision", "transformers", "open_clip_torch", "pillow", "numpy")
_RESAMPLES = 1000
_PATHS = ("data", "image_root", "images")
_DATA = (*_PATHS, "image_column", "text_column")  # settings that say what was measured, where a task has them

Metric = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a model came to on a set at a task; the keys are those of the module's table."""

    task: str
    set: str
    model: str
    metrics: Mapping[str, Metric]
    counts: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: str | Path, dated: bool = True) -> Path:
        """Write the file, whole or not at all, in the place of an earlier one of the same data; its path.

        Args:
            dated: say when; without it equal results are equal files.

        Raises:
            JobError: as :func:`result_path`.
        """
        path = result_path(folder, self.task, self.set, self.model, self.settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        versions = {"python": platform.python_version(), **{package: version(package) for package in _VERSIONS}}
        content = {"schema": SCHEMA, **asdict(self), "versions": versions}
        content["created"] = datetime.now(UTC).isoformat(timespec="seconds") if dated else None
        content["details"] = content.pop("details")
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        return partial.replace(path)

    def __str__(self) -> str:
        width = max(map(len, self.metrics))
        lines = [f"{name:<{width}}  {metric_text(metric)}" for name, metric in self.metrics.items()]
        wrong = sum(self.counts["errors"].values())
        kinds = "".join(f", {count:,} {kind}" for kind, count in self.counts["errors"].items())
        head = f"{self.set}: {self.counts['ok']:,} ok + {wrong:,} errors = {self.counts['records']:,} records{kinds}"
        return "\n".join([head, *lines])


def result_path(folder: str | Path, task: str, set_name: str, model: str, settings: Mapping[str, Any]) -> Path:
    """Where a result is written: ``<model>__<set>__<task>.json``. May be asked before the work is done.

    Raises:
        JobError: a result of other data is there already, by its settings.
    """
    path = Path(folder) / ("__".join(map(_file_part, (model, set_name, task))) + ".json")
    there = _read(path) if path.exists() else None
    earlier = there.settings if there else {}
    for key in _DATA:
        old, new = earlier.get(key), settings.get(key)
        if old and new and old != new and not (key in _PATHS and Path(old).resolve() == Path(new).resolve()):
            raise JobError(f"{path} is of other data ({key} {old}, not {new}); give another --output, or a --name")
    return path


def read_results(folders: Sequence[str | Path]) -> list[Result]:
    """All results in and below some folders, in order of path; other JSON files are passed over.

    Raises:
        JobError: no such folder, none in it, one of an unknown schema, or two of one model, set and task.
    """
    found: dict[tuple[str, str, str], tuple[Path, Result]] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise JobError(f"no such folder of results: {folder}")
        for path in sorted(folder.rglob("*.json")):
            result = _read(path)
            if result is None:
                continue
            key = (result.model, result.set, result.task)
            if key in found and found[key][0].resolve() != path.resolve():
                raise JobError(f"{found[key][0]} and {path} are both {result.task} of {result.model} on {result.set}")
            found[key] = (path, result)
    if not found:
        raise JobError(f"no results in {', '.join(map(str, folders))}")
    return [result for _, result in found.values()]


def share(hits: int, n: int) -> Metric:
    """A share with its Wilson interval; of nothing it is null."""
    low, high = wilson(hits, n) if n else (None, None)
    return {"value": hits / n if n else None, "low": low, "high": high, "n": n}


def with_interval(value: float, n: int, resampled: np.ndarray) -> Metric:
    """A figure with the middle 95 % of its values under resampling."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high), "n": n}


def resampled_ratios(hits: np.ndarray, n: np.ndarray, seed: int = 0) -> np.ndarray:
    """Bootstrap over clusters: ``sum(hits) / sum(n)`` of clusters drawn again and again with replacement.

    Args:
        hits: (clusters, figures), what counted in each.
        n: (clusters, figures), of how many.

    Returns:
        float64 (1000, figures).
    """
    sums = resampled_sums(np.concatenate([hits, n], axis=1), seed)
    figures = hits.shape[1]
    return sums[:, :figures] / np.maximum(sums[:, figures:], 1)


def resampled_sums(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Bootstrap over clusters: sums of values (clusters, figures) of clusters drawn again, float64 (1000, figures)."""
    rng, clusters = np.random.default_rng(seed), len(values)
    values = values.astype(np.float64, copy=False)
    sums = np.empty((_RESAMPLES, values.shape[1]))
    for k in range(_RESAMPLES):
        sums[k] = np.bincount(rng.integers(clusters, size=clusters), minlength=clusters) @ values
    return sums


def metric_text(metric: Metric | None) -> str:
    """``87.5 % (85.1 to 89.6, n = 1,000)``, or a dash where there is none."""
    if metric is None or metric["value"] is None:
        return "—"
    unit = metric.get("unit")
    scale, digits = (1, 2) if unit else (100, 1)
    value, low, high = (f"{scale * (metric.get(key) or 0.0):.{digits}f}" for key in ("value", "low", "high"))
    text = f"{value} {unit or '%'}"
    return text if metric.get("low") is None else f"{text} ({low} to {high}, n = {metric['n']:,})"


def _file_part(text: str) -> str:
    """A name as part of a file's name: as it is, or made fit for one and told apart by a digest."""
    fit = re.sub(r"[^\w.-]+", "_", text).strip("_")[-80:]
    return fit if fit == text else f"{fit}-{hashlib.blake2b(text.encode(), digest_size=3).hexdigest()}"


def _read(path: Path) -> Result | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"cannot read {path} as JSON: {error}") from error
    if not isinstance(content, dict) or not {"schema", *Result.__dataclass_fields__} <= content.keys():
        return None
    if content["schema"] != SCHEMA:
        raise JobError(f"{path} is of schema {content['schema']}; this version reads {SCHEMA}")
    return Result(**{name: content[name] for name in Result.__dataclass_fields__})
