"""Preference groups about boxes: where things of made scenes lie, above answers whose boxes miss by more.

A judge that chooses among a model's boxes sees few that are exact and few that are absurd, so the chosen answer may
miss a little too, and the wrong ones miss by all amounts. All sides lie on whole pixels, as true ones do: else a judge
would tell damaged boxes by their numbers, without the image.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from src.dataset.preference_build import Group
from src.dataset.scene_questions import box_text, questions
from src.dataset.scenes import make_scene, png_bytes

BOX_KINDS = ("near", "off", "elsewhere", "other_thing")
# Largest move of a box and change of its sides, as shares of them; lowest and highest overlap that is left
_SPREAD = {"chosen": (0.12, 0.7, 1.0), "near": (0.35, 0.35, 0.75), "off": (0.9, 0.0, 0.5)}
_LESS = 0.15
_TRIES = 50
Sides = tuple[int, int, int, int]


def box_groups(
    seeds: Iterable[int], kinds: Sequence[str] = BOX_KINDS, size: int = 112, most: int = 2, exact: float = 0.3
) -> Iterator[Group]:
    """Yield per made scene its PNG as ``image``, a grounding ``question``, a good answer, and worse ones.

    Kinds of worse answers, all of as many boxes as there are true ones: ``near`` and ``off``, boxes moved and
    resized until their mean overlap with the true ones is 0.35 to 0.75, or up to 0.5; ``elsewhere``, boxes of the same
    sides at any place; ``other_thing``, boxes of something else. Each overlaps 0.15 less than the chosen answer.

    Args:
        size: side of the images in pixels.
        most: worse answers of a group at most, drawn from those of all kinds: rows of six boxes are long.
        exact: share of groups, 0..1, whose chosen answer is the true one; in the others its overlap is 0.7 or more.
    """
    for seed in seeds:
        scene = make_scene(seed, size=size)
        rng = np.random.Generator(np.random.PCG64([seed, 13]))
        *_, asked = questions(scene.facts, scene.objects, scene.image.size, rng)  # grounding is the last
        true = [_whole(box) for box in asked["boxes"]]
        chosen = true if rng.random() < exact else _moved(rng, true, size, "chosen") or true
        others = [box for thing in scene.objects if (box := _whole(thing.box)) not in true]
        wrong: dict[str, list[Sides]] = {}
        for kind in (kinds[int(k)] for k in rng.permutation(len(kinds))):
            if len(wrong) == most:
                break
            if boxes := _wrong(rng, kind, true, others, size, overlap(true, chosen) - _LESS):
                wrong[kind] = boxes
        text = {kind: _text(boxes, size) for kind, boxes in wrong.items()}
        yield {
            "image": {"bytes": png_bytes(scene.image), "path": f"{seed:08d}.png"},
            "question": asked["question"],
            "chosen": _text(chosen, size),
            "rejected": list(text.values()),
            "kinds": list(text),
            "source": scene.facts.kind,
        }


def _wrong(
    rng: np.random.Generator, kind: str, true: Sequence[Sides], others: Sequence[Sides], size: int, below: float
) -> list[Sides] | None:
    """Boxes of a kind that overlap less than ``below``; None if some tries find none."""
    if kind in _SPREAD:
        return _moved(rng, true, size, kind, below)
    if kind == "other_thing" and not others:
        return None
    boxes = [others[int(rng.integers(len(others)))] if kind == "other_thing" else _anywhere(rng, box, size)
             for box in true]  # fmt: skip
    return boxes if overlap(true, boxes) <= below else None


def overlap(true: Sequence[Sides], boxes: Sequence[Sides]) -> float:
    """Mean intersection over union of boxes in the same order."""
    return float(np.mean([_iou(a, b) for a, b in zip(true, boxes, strict=True)]))


def _iou(a: Sides, b: Sides) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _moved(
    rng: np.random.Generator, true: Sequence[Sides], size: int, kind: str, below: float = 1.0
) -> list[Sides] | None:
    """Boxes moved and resized until their overlap is that of the kind; None if none of some tries is."""
    spread, lowest, highest = _SPREAD[kind]
    for _ in range(_TRIES):
        boxes = [_shaken(rng, box, size, spread) for box in true]
        if lowest <= overlap(true, boxes) <= min(highest, below):
            return boxes
    return None


def _shaken(rng: np.random.Generator, box: Sides, size: int, spread: float) -> Sides:
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    across, down = rng.uniform(-spread, spread, 2)
    wider, higher = np.exp(rng.uniform(-spread, spread, 2) / 2)
    return _inside((x1 + x2) / 2 + across * width, (y1 + y2) / 2 + down * height, width * wider, height * higher, size)


def _whole(box: Iterable[float]) -> Sides:
    x1, y1, x2, y2 = map(int, box)
    return x1, y1, x2, y2


def _anywhere(rng: np.random.Generator, box: Sides, size: int) -> Sides:
    x, y = rng.uniform(0, size, 2)
    return _inside(x, y, box[2] - box[0], box[3] - box[1], size)


def _inside(x: float, y: float, width: float, height: float, size: int) -> Sides:
    """A box about a middle, of whole pixels, at least two of them wide and high, within the image."""
    w, h = (min(size, max(2, round(side))) for side in (width, height))
    x1, y1 = (min(max(round(middle - side / 2), 0), size - side) for middle, side in ((x, w), (y, h)))
    return x1, y1, x1 + w, y1 + h


def _text(boxes: Sequence[Sides], size: int) -> str:
    """Boxes as they are asked for: top to bottom, then left to right."""
    return "".join(box_text(box, size, size) for box in sorted(boxes, key=lambda box: (box[1], box[0])))
