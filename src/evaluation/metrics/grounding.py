"""Grounding: which true boxes were found, by the best matching, at several overlaps and by size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from src.evaluation.metrics.base import Scored, nothing, ratio
from src.evaluation.results import Metric
from src.rewards.boxes import SIZES, THRESHOLDS, Box, GroundingCounts
from src.rewards.published import published_grounding


@dataclass(frozen=True)
class Grounded:
    """Boxes of one sample, in pixels.

    Attributes:
        true: none if the record is unusable.
        predicted: none where there was no answer, or no box in it.
        published: what the published extractor makes of the answer.
    """

    true: Sequence[Box] = ()
    predicted: Sequence[Box] = ()
    published: Sequence[Box] | None = None


def score_grounding(boxes: Sequence[Grounded], published: bool = False) -> Scored:
    """Score the boxes of a task.

    Returns:
        Metrics ``precision`` (of all true boxes, those with an IoU of at least 0.5 in the best one-to-one matching),
        ``precision@0.3`` ... ``precision@0.9``, ``precision_S``, ``_M``, ``_L``, ``unparsed`` (answers without a box);
        with ``published`` also ``precision_published``, which leaves out what was not paired.
        A row has ``boxes``, ``true_boxes``, ``hits`` and ``unparsed``.
    """
    counted = [GroundingCounts.of(one.true, one.predicted) for one in boxes]
    rows: list[dict[str, Any]] = [
        {"boxes": _rounded(one.predicted), "true_boxes": _rounded(one.true),
         "hits": counts.hits[0.5], "unparsed": not one.predicted}
        for one, counts in zip(boxes, counted, strict=True)
    ]  # fmt: skip
    wholes = [counts.true for counts in counted]
    metrics = {"precision": ratio([counts.hits[0.5] for counts in counted], wholes)}
    for threshold in (t for t in THRESHOLDS if t != 0.5):
        metrics[f"precision@{threshold}"] = ratio([counts.hits[threshold] for counts in counted], wholes)
    for name in SIZES:
        hits = [counts.size_hits[name] for counts in counted]
        metrics[f"precision_{name}"] = ratio(hits, [counts.size_count[name] for counts in counted])
    metrics["unparsed"] = ratio([row["unparsed"] for row in rows])
    if published:
        metrics["precision_published"] = _published(boxes)
    summary = GroundingCounts.total(counted).summary()
    kept = ("n_true", "n_pred", "hits", "missing", "surplus", "predictions_without_hit")
    counts = {key: summary[key] for key in kept}
    counts["unparsed"] = sum(row["unparsed"] for row in rows)
    return Scored(metrics, counts, {"curve": summary["curve"], "size": summary["size"]}, rows)


def _rounded(boxes: Sequence[Box]) -> list[list[float]]:
    return [[round(side, 2) for side in box] for box in boxes]


def _published(boxes: Sequence[Grounded]) -> Metric:
    try:
        value = published_grounding((one.true, one.published) for one in boxes)["precision"]
    except ValueError:  # nothing was paired at all, at which the published evaluation stopped
        return nothing()
    return {**nothing(sum(len(one.true) for one in boxes)), "value": value}
