"""Boxes in answers: how each family of models writes them, and how well they meet the true ones."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from src.rewards.answers import final_answer

Box = tuple[float, float, float, float]
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SIZES = {"S": 32.0**2, "M": 96.0**2, "L": float("inf")}  # largest area in pixels, as COCO has it

_N = r"\s*(-?(?:\d+(?:\.\d+)?|\.\d+))\s*"
_SEP = r"(?:,|(?<=\s))"
_QUAD = re.compile(rf"\[{_N}{_SEP}{_N}{_SEP}{_N}{_SEP}{_N}\]")
_PAIR = re.compile(rf"\({_N}{_SEP}{_N}\)\s*,?\s*\({_N}{_SEP}{_N}\)")
_ANGLE = re.compile(rf"\{{\s*<{_N}>\s*<{_N}>\s*<{_N}>\s*<{_N}>\s*(?:\|\s*<\s*-?[\d.]+\s*>\s*)?\}}")
_KEYED = re.compile(rf"[\"']bbox_2d[\"']\s*:\s*{_QUAD.pattern}")


@dataclass(frozen=True)
class BoxFormat:
    """How a family writes boxes.

    Attributes:
        patterns: tried in this order; the first that gives a box is taken.
        container: tags around boxes; the patterns are tried on what is inside of them first, then on all of the text.
        bound: coordinates are in 0..bound of either side; None for pixels.
    """

    patterns: tuple[re.Pattern[str], ...]
    container: tuple[str, str] | None = None
    bound: float | None = None


_QWEN2_VL = BoxFormat((_PAIR, _QUAD), ("<|box_start|>", "<|box_end|>"), 1000)
_ANGLED = BoxFormat((_ANGLE,), bound=100)
BOX_FORMATS = {
    "ground_truth": BoxFormat((_QUAD,)),
    "qwen2_vl": _QWEN2_VL,
    "qwen2_vl_reasoning": _QWEN2_VL,
    "qwen2_5_vl": BoxFormat((_KEYED, _PAIR, _QUAD)),
    "internvl2": BoxFormat((_QUAD,), bound=1000),
    "internvl3": BoxFormat((_QUAD,), ("<box>", "</box>"), 1000),
    "vhm": BoxFormat((_QUAD,), bound=1000),
    "geochat": _ANGLED,
    "skysensegpt": _ANGLED,
    "lhrs_nova": BoxFormat((_QUAD,), ("<bbox>", "</bbox>"), 1),
    "grpo_reference": _QWEN2_VL,
}


def parse_boxes(
    text: str | None,
    family: str = "qwen2_vl",
    size: tuple[float, float] | None = None,
    bound: float | None = None,
) -> list[Box]:
    """The boxes (x1, y1, x2, y2) that an answer gives, corners sorted; those without area are left out.

    Args:
        text: as the model gave it; boxes in its reasoning do not count.
        family: a key of ``BOX_FORMATS``.
        size: (width, height) of the image in pixels: boxes are then in pixels and clipped to it; without it they
            stay in the text's own units.
        bound: instead of the family's own.

    Raises:
        KeyError: an unknown family.

    >>> parse_boxes("<|box_start|>(10,20),(300,400)<|box_end|>", size=(500, 500))
    [(5.0, 10.0, 150.0, 200.0)]
    """
    form = BOX_FORMATS[family]
    said = " ".join(final_answer(text).split())  # runs of blanks would cost the patterns their square
    found = _first(form, _contained(said, form.container)) if form.container else []
    bound = bound or form.bound
    boxes = []
    for x1, y1, x2, y2 in found or _first(form, said):
        box = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        if size:
            box = _in_pixels(box, size, bound)
        if box[0] < box[2] and box[1] < box[3]:
            boxes.append(box)
    return boxes


def _contained(text: str, container: tuple[str, str]) -> str:
    start, end = (re.escape(tag) for tag in container)
    return " ".join(re.findall(f"{start}(.*?){end}", text, re.S))


def _first(form: BoxFormat, text: str) -> list[Box]:
    for pattern in form.patterns:
        if found := [tuple(float(number) for number in match.groups()) for match in pattern.finditer(text)]:
            return found  # type: ignore[return-value]  # four groups in every pattern
    return []


def _in_pixels(box: Box, size: tuple[float, float], bound: float | None) -> Box:
    width, height = size
    across, down = (width / bound, height / bound) if bound else (1.0, 1.0)
    x1, x2 = (min(max(x * across, 0.0), width) for x in box[::2])
    y1, y2 = (min(max(y * down, 0.0), height) for y in box[1::2])
    return x1, y1, x2, y2


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union, in 0..1; 0 where they only touch, or both are empty."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def iou_table(true: Sequence[Box], predicted: Sequence[Box]) -> np.ndarray:
    """IoUs, float (true boxes, predicted boxes)."""
    table = [[box_iou(one, other) for other in predicted] for one in true]
    return np.array(table, dtype=np.float64).reshape(len(true), len(predicted))


def match_boxes(true: Sequence[Box], predicted: Sequence[Box], threshold: float = 0.5) -> list[tuple[int, int, float]]:
    """The best one-to-one pairs (index of the true box, of the predicted one, IoU), by true index.

    As many pairs with an IoU of at least ``threshold`` as there can be, and of all such matchings the one with the
    largest sum of IoUs; whatever the order of either.
    """
    return _pairs(iou_table(true, predicted), threshold)


def _pairs(iou: np.ndarray, threshold: float) -> list[tuple[int, int, float]]:
    # One pair more outweighs any sum of IoUs.
    gain = np.where(iou >= threshold, iou + 1 + min(iou.shape), 0.0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(row, column, float(iou[row, column])) for row, column in pairs if iou[row, column] >= threshold]


def box_hits(true: Sequence[Box], predicted: Sequence[Box], threshold: float = 0.5) -> int:
    """How many true boxes can be given a predicted one each with an IoU of at least ``threshold``."""
    return len(match_boxes(true, predicted, threshold))


def size_class(box: Box) -> str:
    """``S`` up to 32 x 32 pixels, ``M`` up to 96 x 96, else ``L``; of a box in pixels."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return next(name for name, largest in SIZES.items() if area <= largest)


@dataclass
class GroundingCounts:
    """Counts of grounding over records; their ratios have the number of all true boxes below the line."""

    records: int = 0
    true: int = 0
    predicted: int = 0
    missing: int = 0
    surplus: int = 0
    hits: dict[float, int] = field(default_factory=lambda: dict.fromkeys(THRESHOLDS, 0))
    size_count: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIZES, 0))
    size_hits: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIZES, 0))

    @classmethod
    def of(cls, true: Sequence[Box], predicted: Sequence[Box]) -> "GroundingCounts":
        """Those of one record, boxes in pixels.

        Raises:
            ValueError: a true box without area.
        """
        if any(box[0] >= box[2] or box[1] >= box[3] for box in true):
            raise ValueError(f"a true box has no area: {list(true)}")
        iou = iou_table(true, predicted)
        found = {threshold: _pairs(iou, threshold) for threshold in THRESHOLDS}
        sizes, hit = [size_class(box) for box in true], [size_class(true[row]) for row, *_ in found[0.5]]
        return cls(
            records=1,
            true=len(true),
            predicted=len(predicted),
            missing=max(0, len(true) - len(predicted)),
            surplus=max(0, len(predicted) - len(true)),
            hits={threshold: len(pairs) for threshold, pairs in found.items()},
            size_count={name: sizes.count(name) for name in SIZES},
            size_hits={name: hit.count(name) for name in SIZES},
        )

    @classmethod
    def total(cls, counts: Iterable["GroundingCounts"]) -> "GroundingCounts":
        """The sum of counts."""
        sums = cls()
        for one in counts:
            for name, value in vars(one).items():
                own = getattr(sums, name)
                added = {key: own[key] + value[key] for key in own} if isinstance(own, dict) else own + value
                setattr(sums, name, added)
        return sums

    def summary(self) -> dict[str, object]:
        """Counts and ratios, ratios None where there is nothing to divide by."""
        sizes = {
            name: {"count": count, "hits": self.size_hits[name], "precision": _ratio(self.size_hits[name], count)}
            for name, count in self.size_count.items()
        }
        return {
            "n_records": self.records,
            "n_true": self.true,
            "n_pred": self.predicted,
            "hits": self.hits[0.5],
            "precision": _ratio(self.hits[0.5], self.true),
            "missing": self.missing,
            "surplus": self.surplus,
            "predictions_without_hit": self.predicted - self.hits[0.5],
            "curve": {f"{t}": {"hits": hits, "precision": _ratio(hits, self.true)} for t, hits in self.hits.items()},
            "size": sizes,
        }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
