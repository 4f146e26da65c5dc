import numpy as np
import pytest

from src.dataset.caption_edits import EDITS, THINGS, edit_caption

CASES = {
    "wrong_object": "many planes are parked near a terminal in an airport .",
    "wrong_count": "Two ships and three cars .",
    "wrong_colour": "the Red roof beside the grey road",
    "wrong_relation": "the lake is on the left of a road",
    "truncated": "there are some houses beside the river",
    "misspelt": "there are some houses beside the river",
}


@pytest.mark.parametrize("kind", EDITS)
def test_each_edit_changes_its_own_words_only(kind):
    text = CASES[kind]
    for seed in range(50):
        changed = edit_caption(text, kind, np.random.default_rng(seed))
        assert changed
        assert changed != text
        if kind in ("wrong_count", "wrong_colour", "wrong_relation"):
            old, new = text.split(), changed.split()
            assert sum(a != b for a, b in zip(old, new, strict=True)) == 1
            different = next((a, b) for a, b in zip(old, new, strict=True) if a != b)
            assert different[0][0].isupper() == different[1][0].isupper()


def test_plural_and_article_go_with_the_new_word():
    words = {edit_caption("planes near an airport", "wrong_object", np.random.default_rng(i)) for i in range(300)}
    assert "churches near an airport" in words
    assert "factories near an airport" in words
    assert "planes near a river" in words
    assert "planes near an island" in words


def test_synonyms_are_not_swapped_for_each_other():
    ships = next(group for group in THINGS if "ship" in group)
    changed = {edit_caption("a ship", "wrong_object", np.random.default_rng(i)) for i in range(300)}
    assert not any(word in text for text in changed for word in ships)
    greys = {edit_caption("a gray road", "wrong_colour", np.random.default_rng(i)) for i in range(100)}
    assert "a grey road" not in greys


@pytest.mark.parametrize("kind", EDITS)
def test_what_does_not_apply_gives_none(kind):
    assert edit_caption("it is .", kind, np.random.default_rng(0)) is None
