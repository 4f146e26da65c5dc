"""A captioned data set whose faults are known: some captions are put in the place of others, or damaged."""

from collections.abc import Sequence

import numpy as np

from src.dataset.caption_edits import EDITS, edit_caption
from src.dataset.preference_build import foreign_caption

# What a damaged caption becomes, and how often: mostly the caption of an image of another class, which is what broken
# links and careless crawls make; a caption that has no word to change for an edit becomes one of those too.
KINDS = {"other_class": 0.6, "same_class": 0.1, "wrong_object": 0.1, "truncated": 0.1, "misspelt": 0.1}
CLEAN = "clean"


def damage(
    texts: Sequence[Sequence[str]], labels: Sequence[str], share: float, seed: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Damage a share of all captions, chosen at random.

    Args:
        texts: captions of each image.
        labels: class of each image; there must be two or more.
        share: 0..1, of the captions, rounded down.

    Returns:
        The captions, and of each what became of it: ``clean`` or one of ``KINDS``.
    """
    rng = np.random.default_rng(seed)
    names = np.array(labels)
    places = [(i, k) for i, own in enumerate(texts) for k in range(len(own))]
    damaged, kinds = [list(own) for own in texts], [[CLEAN] * len(own) for own in texts]
    same = {name: np.flatnonzero(names == name) for name in set(labels)}
    others = {name: np.flatnonzero(names != name) for name in same}
    for place in rng.permutation(len(places))[: int(share * len(places) + 1e-9)]:
        i, k = places[place]
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        if kind in EDITS:
            text = edit_caption(texts[i][k], kind, rng)
        else:
            pool = others[labels[i]] if kind == "other_class" else same[labels[i]]
            text = foreign_caption(rng, pool, texts, set(texts[i]))
        if text is None:
            kind, text = "other_class", foreign_caption(rng, others[labels[i]], texts, set(texts[i]))
        if text is not None:
            damaged[i][k], kinds[i][k] = text, kind
    return damaged, kinds
