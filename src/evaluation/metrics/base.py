"""What scoring a task gives, and figures with bootstrap intervals."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from src.evaluation.results import Metric, resampled_sums, with_interval

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Scored:
    """Metrics, counts and tables of a task, as :class:`src.evaluation.results.Result` has them, and a row a sample.

    Attributes:
        rows: what the file of samples says about each answer.
    """

    metrics: dict[str, Metric]
    counts: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


def nothing(n: int = 0) -> Metric:
    """A figure that is not defined."""
    return {"value": None, "low": None, "high": None, "n": n}


def ratio(parts: Sequence[float], wholes: Sequence[float] | None = None) -> Metric:
    """``sum(parts) / sum(wholes)`` over records, with its interval from records drawn again with replacement.

    Args:
        parts: of each record.
        wholes: of each record; None: one each, which makes a mean.
    """
    return ratios({"": parts}, np.ones(len(parts)) if wholes is None else wholes)[""]


def ratios(parts: Mapping[Key, Sequence[float]], wholes: Sequence[float] | np.ndarray) -> dict[Key, Metric]:
    """:func:`ratio` of several figures of the same records, from the same draws."""
    lower = np.asarray(wholes, dtype=np.float64)[:, None]
    n = int(lower.sum())
    if not n:
        return {key: nothing() for key in parts}
    upper = np.array(list(parts.values()), dtype=np.float64).T
    drawn = _drawn(upper, np.broadcast_to(lower, upper.shape))
    drawn = drawn[~np.isnan(drawn).any(axis=1)]
    values = upper.sum(axis=0) / n
    return {key: with_interval(float(values[k]), n, drawn[:, k]) for k, key in enumerate(parts)}


def means_of_groups(right: Sequence[bool], groups: Sequence[Sequence[str]]) -> tuple[Metric, dict[str, Metric]]:
    """The mean over groups of each group's share of right records, and the shares.

    Args:
        groups: that each record counts in: none, one or several.
    """
    names = sorted({name for own in groups for name in own}, key=_natural)
    if not names:
        return nothing(), {}
    column = {name: k for k, name in enumerate(names)}
    member = np.zeros((len(groups), len(names)))
    for row, own in enumerate(groups):
        member[row, [column[name] for name in own]] = 1
    hits = member * np.asarray(right, dtype=np.float64)[:, None]
    drawn = _drawn(hits, member)
    shares = {
        name: with_interval(float(hits[:, k].sum() / member[:, k].sum()), int(member[:, k].sum()),
                            drawn[~np.isnan(drawn[:, k]), k])
        for name, k in column.items()
    }  # fmt: skip
    mean = float(np.mean([metric["value"] for metric in shares.values()]))
    drawn = drawn[~np.isnan(drawn).all(axis=1)]
    return with_interval(mean, int(member.any(axis=1).sum()), np.nanmean(drawn, axis=1)), shares


def _drawn(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Ratios of sums over records drawn again, (draws, figures); NaN where a draw has nothing to divide by."""
    upper, lower = np.split(resampled_sums(np.concatenate([parts, wholes], axis=1)), 2, axis=1)
    return np.divide(upper, lower, out=np.full_like(upper, np.nan), where=lower > 0)


def in_units(metric: Metric, unit: str) -> Metric:
    """A figure that is no share, but in units; less is better."""
    return {**metric, "unit": unit}


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (10**9, name)
