"""Questions about made scenes with their answers: class, presence, count, colour, relation, and boxes."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from src.dataset.scene_canvas import COLOURS, pick
from src.dataset.scene_facts import INVERSE, Facts
from src.dataset.scene_kinds import KINDS
from src.dataset.scene_text import article, plural

Box = tuple[int, int, int, int]


class _Thing(Protocol):
    @property
    def category(self) -> str: ...
    @property
    def box(self) -> Box: ...


def box_text(box: Box, width: int, height: int) -> str:
    """A pixel box (x1, y1, x2, y2) as Qwen2-VL writes it, in thousandths of the image's width and height."""
    x1, y1, x2, y2 = (round(1000 * v / side) for v, side in zip(box, (width, height) * 2, strict=True))
    return f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"


def questions(
    facts: Facts, objects: Sequence[_Thing], size: tuple[int, int], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """One question of each type: dicts of type, question, answer, and for `grounding` also `boxes` in pixels.

    Types: scene, presence_yes, presence_no, count, colour, landmark_colour, relation, grounding. `size` is the
    image's (width, height). A grounding answer holds one box after another, top to bottom, then left to right.
    """
    rules = KINDS[facts.kind]
    many = plural(facts.category)
    missing = [e for e in (*rules.extras, *rules.landmarks) if e not in facts.things]
    target = pick(rng, facts.things)
    boxes = sorted((o.box for o in objects if o.category == target), key=lambda b: (b[1], b[0]))
    what = f"all {plural(target)}" if len(boxes) > 1 else f"the {target}"
    ways = ", ".join(INVERSE)
    asked: list[tuple[str, str, str]] = [
        ("scene", f"Which scene is this: {_choices(facts.kind, tuple(KINDS), rng)}?", facts.kind),
        ("presence_yes", f"Is there {article(pick(rng, facts.things))} in the image?", "yes"),
        ("presence_no", f"Is there {article(pick(rng, missing))} in the image?", "no"),
        ("count", f"How many {many} are in the image?", str(facts.count)),
        ("colour", f"What colour {'is' if facts.count == 1 else 'are'} the "
                   f"{facts.category if facts.count == 1 else many}: {', '.join(COLOURS)}?", facts.colour),
        ("landmark_colour", f"What colour is the {facts.landmark}: {', '.join(COLOURS)}?", facts.landmark_colour),
        ("relation", f"Where {'is' if facts.count == 1 else 'are'} the {facts.category if facts.count == 1 else many} "
                     f"with respect to the {facts.landmark}: {ways}?", facts.relation),
        ("grounding", f"Give the bounding box of {what}.", "".join(box_text(b, *size) for b in boxes)),
    ]  # fmt: skip
    made: list[dict[str, Any]] = [{"type": t, "question": q, "answer": a} for t, q, a in asked]
    made[-1]["boxes"] = [list(b) for b in boxes]
    return made


def _choices(right: str, options: Sequence[str], rng: np.random.Generator) -> str:
    """Four options in disorder, the right one among them."""
    others = [o for o in options if o != right]
    four = [right, *(others[int(i)] for i in rng.permutation(len(others))[:3])]
    return ", ".join(four[int(i)] for i in rng.permutation(4))
