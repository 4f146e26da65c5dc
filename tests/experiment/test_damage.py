"""Damaging captions: as many as asked for, each wrong for its image, the others as they were."""

import numpy as np
import pytest

from src.experiment.damage import CLEAN, KINDS, damage

LABELS = ["airport", "beach", "forest", "harbour"] * 10
TEXTS = [[f"{['one', 'two', 'three'][k]} long {label} number {i} beside a road" for k in range(3)]
         for i, label in enumerate(LABELS)]  # fmt: skip


@pytest.mark.parametrize("share", [0, 0.25, 0.6, 1])
def test_the_share_is_that_of_the_captions(share):
    texts, kinds = damage(TEXTS, LABELS, share, seed=3)
    flat = [kind for own in kinds for kind in own]
    assert sum(kind != CLEAN for kind in flat) == share * 120
    for own, new, of in zip(TEXTS, texts, kinds, strict=True):
        assert [a == b for a, b in zip(own, new, strict=True)] == [kind == CLEAN for kind in of]
        assert not {text for text, kind in zip(new, of, strict=True) if kind != CLEAN} & set(own)


def test_each_kind_is_what_it_says():
    texts, kinds = damage(TEXTS, LABELS, 1, seed=1)
    found = {kind: [] for kind in KINDS}
    for label, own, new, of in zip(LABELS, TEXTS, texts, kinds, strict=True):
        for before, after, kind in zip(own, new, of, strict=True):
            found[kind].append((label, before, after))
    assert all(found.values())
    assert all(label not in after for label, _, after in found["other_class"])
    assert all(label in after for label, _, after in found["same_class"])
    assert all(before.startswith(after) for _, before, after in found["truncated"])
    assert 0.5 < len(found["other_class"]) / 120 < 0.7


def test_the_seed_decides():
    first, again, other = (damage(TEXTS, LABELS, 0.5, seed)[0] for seed in (1, 1, 2))
    assert first == again != other
    assert TEXTS[0][0].startswith("one long airport"), "what is given stays as it is"


def test_where_no_edit_applies_another_caption_stands():
    _, kinds = damage([["sea"], ["ice"]] * 200, ["a", "b"] * 200, 1, seed=0)
    assert {kind for own in kinds for kind in own} <= {"other_class", "misspelt", "wrong_object", CLEAN}
    assert np.mean([own[0] == "other_class" for own in kinds]) > 0.7
