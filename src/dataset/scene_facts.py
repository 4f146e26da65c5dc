"""What is true of a made scene, drawn from its seed before a single pixel is: captions need no more than this."""

from dataclasses import dataclass

import numpy as np

from src.dataset.scene_canvas import pick
from src.dataset.scene_kinds import EXTENT, KINDS, colours_of

RELATIONS = ("right of", "below", "left of", "above")  # in the order of quarter turns
INVERSE = {"right of": "left of", "left of": "right of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Facts:
    """`count` things of one `category` and `colour` lie `relation` the one landmark; `extras` are there besides.

    `relation` is one of RELATIONS, in the picture's own directions (above: nearer its top edge). `season` is ""
    where the ground shows none.
    """

    kind: str
    season: str
    category: str
    count: int
    colour: str
    landmark: str
    landmark_colour: str
    relation: str
    extras: tuple[str, ...]

    @property
    def things(self) -> tuple[str, ...]:
        """Every category that is in the picture."""
        return (self.category, self.landmark, *self.extras)


def draw_facts(rng: np.random.Generator, kind: str | None = None) -> Facts:
    """The facts of one scene; a kind is drawn when none is given.

    Counts run 1..6 (trains 1..5), each equally likely; so are the colours that show on the ground.
    """
    kind = kind or pick(rng, tuple(KINDS))
    rules = KINDS[kind]
    season = pick(rng, rules.seasons) if rules.seasons else ""
    category, landmark = pick(rng, tuple(rules.counted)), pick(rng, tuple(rules.landmarks))
    many = min(int(pick(rng, (0, 1, 1, 1, 2, 2))), len(rules.extra_at))
    order = rng.permutation(len(rules.extras))[:many]
    return Facts(
        kind=kind,
        season=season,
        category=category,
        count=1 + int(rng.integers(largest_count(category))),
        colour=pick(rng, colours_of(kind, season, category)),
        landmark=landmark,
        landmark_colour=pick(rng, colours_of(kind, season, landmark)),
        relation=pick(rng, RELATIONS),
        extras=tuple(rules.extras[int(i)] for i in order),
    )


def largest_count(category: str) -> int:
    """The most things of a category one scene holds."""
    return 5 if EXTENT[category][0] > 0.4 else 6
