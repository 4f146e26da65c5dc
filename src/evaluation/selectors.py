"""Which of several candidates to take, and what that is worth with fewer of them; in arrays, without any model.

Voting is by agreement: how much of one answer another one says. Answers agree if the same was read in them, boxes by
their overlap; an answer in which nothing could be read neither votes nor is voted for. The rules of ties are those of
``docs/metrics.md``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations

import numpy as np

from src.rewards.boxes import Box, match_boxes

PLAIN = ("first", "random", "majority_voting", "oracle")
WEIGHTED = "weighted_"
_EVERY = 2000  # subsets that are all looked at; of more, so many are drawn
_TIE = 1e-12


@dataclass(frozen=True)
class Candidates:
    """The candidates of one question.

    Attributes:
        value: float (n,), what each is worth: right or wrong, or the number of true boxes found.
        agreement: float (n, n) in 0..1; a row of zeros where nothing could be read.
        scores: by judge float (n,); NaN where there is none.
    """

    value: np.ndarray
    agreement: np.ndarray
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)

    def selectors(self) -> list[str]:
        """Names that :meth:`pick` takes: ``PLAIN``, each judge, and each judge with ``weighted_`` before it."""
        return [*PLAIN, *self.scores, *(WEIGHTED + name for name in self.scores)]

    def pick(self, selector: str, members: np.ndarray) -> np.ndarray:
        """The candidate that a selector takes from each of some subsets.

        Args:
            selector: ``first``; ``oracle``, the first of the most worth; a judge, the highest score, ties to the first;
                ``majority_voting``, the most agreement with all, ties to the higher mean score (of the first judge) of
                those that agree, then to the first; ``weighted_<judge>``, the same with weights exp(score).
            members: bool (subsets, n), at least one candidate in each.

        Returns:
            int (subsets,).
        """
        if selector == "first":
            return members.argmax(axis=1)
        if selector == "oracle":
            return np.where(members, self.value, -np.inf).argmax(axis=1)
        if selector in self.scores:
            return np.where(members, _filled(self.scores[selector]), -np.inf).argmax(axis=1)
        readable = members & self.agreement.any(axis=1)
        weight = readable.astype(np.float64)
        if selector.startswith(WEIGHTED):
            scores = _filled(self.scores[selector.removeprefix(WEIGHTED)])
            highest = np.where(readable, scores, -np.inf).max(axis=1, keepdims=True)
            weight = np.where(readable, np.exp(np.where(readable, scores - highest, 0.0)), 0.0)
        support = np.where(readable, weight @ self.agreement, -np.inf)
        best = readable & (support >= support.max(axis=1, keepdims=True) - _TIE)
        if selector == "majority_voting" and self.scores:
            scores = _filled(next(iter(self.scores.values())))
            mean = np.where(best, (weight * scores) @ self.agreement / np.maximum(support, _TIE), -np.inf)
            best &= mean >= mean.max(axis=1, keepdims=True) - 1e-9  # sums of one group differ in their last bits
        return np.where(best.any(axis=1), best.argmax(axis=1), members.argmax(axis=1))

    def worth(self, selector: str, size: int, value: np.ndarray | None = None) -> float:
        """The mean worth of what a selector takes from ``size`` candidates, over subsets in their original order.

        Over all subsets up to 2,000 of them, else over as many drawn ones: without bias for ``size`` drawn candidates.

        Args:
            value: instead of the candidates' own, float (n,).
        """
        value = self.value if value is None else value
        if selector == "random" or (value == value[0]).all():
            return float(value.mean())
        return float(value[self.pick(selector, subsets(len(value), size))].mean())


def _filled(scores: np.ndarray) -> np.ndarray:
    """Scores with those that are missing far below all others."""
    known = ~np.isnan(scores)
    low = scores[known].min() - 1e3 if known.any() else 0.0
    return np.where(known, scores, low)


@cache
def subsets(n: int, size: int) -> np.ndarray:
    """Subsets of ``size`` of n candidates, bool (subsets, n): all, or 2,000 drawn ones where there are more."""
    if math.comb(n, size) <= _EVERY:
        chosen = np.array(list(combinations(range(n), size)))
    else:
        chosen = np.random.default_rng(size).permuted(np.tile(np.arange(n), (_EVERY, 1)), axis=1)[:, :size]
    members = np.zeros((len(chosen), n), dtype=bool)
    np.put_along_axis(members, chosen, True, axis=1)
    return members


def sizes_up_to(n: int) -> list[int]:
    """1, 2, 4 ... and n.

    >>> sizes_up_to(10)
    [1, 2, 4, 8, 10]
    """
    return [*(2**k for k in range(n.bit_length()) if 2**k < n), n]


def same_read(read: Sequence[str | int | None]) -> np.ndarray:
    """Agreement of answers: 1 where the same was read, 0 where not or nothing was."""
    return np.array([[float(one is not None and one == other) for other in read] for one in read])


def same_boxes(boxes: Sequence[Sequence[Box]]) -> np.ndarray:
    """Agreement of answers in boxes: the IoUs of the best pairs over the larger number of boxes."""
    n = len(boxes)
    agreement = np.zeros((n, n))
    for a in range(n):
        for b in range(a, n):
            if boxes[a] and boxes[b]:
                pairs = match_boxes(boxes[a], boxes[b], threshold=1e-9)
                agreement[a, b] = agreement[b, a] = sum(iou for *_, iou in pairs) / max(len(boxes[a]), len(boxes[b]))
    return agreement
