"""Damaging captions: as many as asked for, each wrong for its image, the others as they were."""

import numpy as np
import pytest

from src.experiment.damage import CLEAN, KINDS, damage, damage_answers, wrong_answers

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


ASKED = ["Which scene is this: an airport, a forest, a beach?", "Is there a pond in the image?", "How many cars?"] * 20
ANSWERS = [
    answer
    for i in range(20)
    for answer in (("an airport", "a forest", "a beach")[i % 3], ("yes", "no")[i % 2], str(i % 5))
]
OF_KIND = ["scene", "yes_no", "count"] * 20


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 1])
def test_a_wrong_answer_is_one_that_might_be_given(share):
    answers, kinds = damage_answers(ASKED, ANSWERS, OF_KIND, share, seed=2)
    assert sum(kind != CLEAN for kind in kinds) == round(share * 60)
    assert [a == b for a, b in zip(answers, ANSWERS, strict=True)] == [kind == CLEAN for kind in kinds]
    possible = {"scene": {"an airport", "a forest", "a beach"}, "yes_no": {"yes", "no"}, "count": set("01234")}
    for kind, options in possible.items():
        assert {answer for answer, of in zip(answers, OF_KIND, strict=True) if of == kind} <= options


def test_the_seed_decides_which_answers_are_wrong():
    first, again, other = (damage_answers(ASKED, ANSWERS, OF_KIND, 0.5, seed)[0] for seed in (1, 1, 2))
    assert first == again != other


def test_options_that_are_offered_come_before_other_answers_of_the_kind():
    found = wrong_answers(
        ["What colour: red, blue?", "What colour?", "Alone?"], ["red", "green", "so"], ["c", "c", "d"]
    )
    assert found == [["blue"], ["red"], []]
    answers, kinds = damage_answers(["Alone?"], ["so"], ["d"], 1, seed=0)
    assert (answers, kinds) == (["so"], [CLEAN]), "what no other answer is known to stays as it is"
