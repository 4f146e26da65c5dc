"""How well a score model tells chosen from rejected answers, and whether it looks at the image to do so.

Controls catch what looks like quality and is a shortcut: the same pairs with the images removed, with the images of
other groups, the rule that the longer answer wins, and a model of the words alone. On kinds of rejected answers that
only the image can tell from the chosen one, all of them should be at chance (50 %).
"""

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

from src.chat import IMAGE
from src.curation.scorer import Scorer

Control = Literal["none", "image_removed", "images_shuffled"]
_Z = 1.959964  # two-sided 95 % of the normal distribution
_BINS = 10
_HASHES = 2**15

Groups = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Pairs:
    """One entry per rejected answer: scores of it and of the chosen one of its group; all arrays ``(pairs,)``."""

    group: np.ndarray
    source: np.ndarray
    kind: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    def where(self, mask: np.ndarray) -> "Pairs":
        """The pairs under a mask."""
        return Pairs(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


def score_pairs(scorer: Scorer, groups: Groups, control: Control = "none", seed: int = 0) -> Pairs:
    """Score every answer of every group (rows of :data:`src.dataset.preference_cache.SCHEMA`).

    Raises:
        RecordError: an answer that cannot be scored.
    """
    scores = iter(scorer.score(_answers(groups, control, seed)))
    rows = []
    for number, group in enumerate(groups):
        kinds = group["kinds"] or ["unlabelled"] * len(group["rejected"])
        chosen = next(scores)
        for kind, _ in zip(kinds, group["rejected"], strict=True):
            rows.append((number, group["source"], kind, chosen, next(scores)))
    return Pairs(*map(np.array, zip(*rows, strict=True)))


def summary(pairs: Pairs) -> dict[str, Any]:
    """Accuracy with its 95 % interval (Wilson 1927; a tie is wrong), AUC over all groups, margin and its calibration.

    ``calibration_error`` is the mean distance between how sure the model is, ``sigmoid(|margin|)`` by the Bradley-Terry
    model that it was trained as, and how often it is right, in bins of equal numbers of pairs.
    """
    gap = pairs.chosen - pairs.rejected
    right = int((gap > 0).sum())
    low, high = wilson(right, len(gap))
    calibration = []
    for part in np.array_split(np.argsort(np.abs(gap)), min(_BINS, len(gap))):
        sure = float((1 / (1 + np.exp(-np.abs(gap[part])))).mean())
        calibration.append({"predicted": sure, "right": float((gap[part] > 0).mean()), "pairs": len(part)})
    error = sum(abs(bin_["predicted"] - bin_["right"]) * bin_["pairs"] for bin_ in calibration) / len(gap)
    return {
        "pairs": len(gap),
        "accuracy": right / len(gap),
        "low": low,
        "high": high,
        "auc": auc(pairs.chosen[np.unique(pairs.group, return_index=True)[1]], pairs.rejected),
        "margin": float(gap.mean()),
        "calibration_error": error,
        "calibration": calibration,
    }


def by(pairs: Pairs, attribute: Literal["source", "kind"]) -> dict[str, dict[str, Any]]:
    """:func:`summary` for each source or kind, without the bins of the calibration."""
    values = getattr(pairs, attribute)
    found = {str(value): summary(pairs.where(values == value)) for value in np.unique(values)}
    for measured in found.values():
        del measured["calibration"]
    return found


def longer_wins(groups: Groups, pairs: Pairs) -> Pairs:
    """The pairs as scored by the number of characters."""
    return _rescored(groups, pairs, lambda text: float(len(text)))


def words_win(groups: Groups, pairs: Pairs, folds: int = 5, seed: int = 0) -> Pairs:
    """The pairs as scored by a model of words and word pairs alone, fitted to the other folds of the groups.

    A logistic regression on the difference of hashed counts: what can be learned from these texts without any image.
    """
    torch.manual_seed(seed)
    rows, signs = [], []
    for group in groups:
        chosen = _hashes(group["chosen"])
        for rejected in map(_hashes, group["rejected"]):
            rows.append(torch.tensor(chosen + rejected))
            signs.append(torch.tensor([1.0] * len(chosen) + [-1.0] * len(rejected)))
    fold = np.random.default_rng(seed).permutation(folds * (pairs.group.max() // folds + 1))[pairs.group] % folds
    gap = np.zeros(len(rows))
    for held_out in range(folds):
        weight = torch.zeros(_HASHES, requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=0.02)
        learn, test = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
        for _ in range(60 if len(learn) else 0):
            loss = F.softplus(-_gaps(weight, rows, signs, learn)).mean() + 1e-4 * weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if len(test):
            gap[test] = _gaps(weight, rows, signs, test).detach().numpy()
    return Pairs(pairs.group, pairs.source, pairs.kind, gap, np.zeros_like(gap))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    share, z2 = successes / n, _Z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * ((share * (1 - share) + z2 / (4 * n)) / n) ** 0.5 / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def auc(chosen: np.ndarray, rejected: np.ndarray) -> float:
    """Share of (chosen, rejected) over all groups with the chosen one higher; ties count half."""
    ordered = np.sort(rejected)
    below, upto = np.searchsorted(ordered, chosen), np.searchsorted(ordered, chosen, side="right")
    return float((below + upto).mean() / (2 * len(rejected)))


def _answers(groups: Groups, control: Control, seed: int) -> Iterator[dict[str, Any]]:
    order = _other_images(groups, seed) if control == "images_shuffled" else range(len(groups))
    for i, group in zip(order, groups, strict=True):
        images, question = groups[i]["images"], group["question"]
        if control == "image_removed":
            images, question = [], question.replace(IMAGE, "")
        for text in (group["chosen"], *group["rejected"]):
            yield {"images": images, "question": question, "text": text}


def _other_images(groups: Groups, seed: int) -> list[int]:
    """For each group the number of another with as many images; its own where there is no other."""
    rng, order = np.random.default_rng(seed), list(range(len(groups)))
    by_number: dict[int, list[int]] = {}
    for i in range(len(groups)):
        by_number.setdefault(len(groups[i]["images"]), []).append(i)
    for members in by_number.values():
        mixed = [members[int(k)] for k in rng.permutation(len(members))]
        for i, other in zip(mixed, [*mixed[1:], mixed[0]], strict=True):
            order[i] = other
    return order


def _rejected(groups: Groups) -> Iterator[str]:
    return (text for group in groups for text in group["rejected"])


def _rescored(groups: Groups, pairs: Pairs, score: Any) -> Pairs:
    chosen = np.array([score(groups[int(g)]["chosen"]) for g in pairs.group])
    rejected = np.array([score(text) for text in _rejected(groups)])
    return Pairs(pairs.group, pairs.source, pairs.kind, chosen, rejected)


def _hashes(text: str) -> list[int]:
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return [zlib.crc32(" ".join(two).encode()) % _HASHES for two in [*((word,) for word in words), *pairwise(words)]]


def _gaps(weight: torch.Tensor, rows: list[torch.Tensor], signs: list[torch.Tensor], which: np.ndarray) -> torch.Tensor:
    lengths = torch.tensor([len(rows[i]) for i in which])
    owner = torch.repeat_interleave(torch.arange(len(which)), lengths)
    parts = weight[torch.cat([rows[i] for i in which])] * torch.cat([signs[i] for i in which])
    return torch.zeros(len(which)).index_add(0, owner, parts)
