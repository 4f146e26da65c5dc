"""Data whose faults are known: captions that are damaged or put in the place of others, and wrong answers."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from src.dataset.caption_edits import EDITS, edit_caption
from src.dataset.preference_build import foreign_caption

# What a damaged caption becomes, and how often: mostly the caption of an image of another class, which is what broken
# links and careless crawls make; a caption that has no word to change for an edit becomes one of those too.
KINDS = {"other_class": 0.6, "same_class": 0.1, "wrong_object": 0.1, "truncated": 0.1, "misspelt": 0.1}
CLEAN, WRONG_ANSWER = "clean", "wrong_answer"


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


def damage_answers(
    questions: Sequence[str], answers: Sequence[str], kinds: Sequence[str], share: float, seed: int
) -> tuple[list[str], list[str]]:
    """Put a plausible wrong answer in the place of a share of all, chosen at random.

    Args:
        kinds: of the questions; see :func:`wrong_answers`.
        share: 0..1, of the answers, rounded down.

    Returns:
        The answers, and of each what became of it: ``clean`` or ``wrong_answer``.
    """
    rng = np.random.default_rng(seed)
    damaged, found = list(answers), [CLEAN] * len(answers)
    wrong = wrong_answers(questions, answers, kinds)
    for place in rng.permutation(len(answers))[: int(share * len(answers) + 1e-9)]:
        if wrong[place]:
            damaged[place], found[place] = str(rng.choice(wrong[place])), WRONG_ANSWER
    return damaged, found


def wrong_answers(questions: Sequence[str], answers: Sequence[str], kinds: Sequence[str]) -> list[list[str]]:
    """What else might be said to each question: the other options that it offers, else other answers of its kind.

    >>> wrong_answers(["Is it red: red, blue, white?", "Any?", "Any?"], ["blue", "yes", "no"], ["colour", "is", "is"])
    [['red', 'white'], ['no'], ['yes']]
    """
    of_kind: dict[str, set[str]] = defaultdict(set)
    for kind, answer in zip(kinds, answers, strict=True):
        of_kind[kind].add(answer)
    found = []
    for question, answer, kind in zip(questions, answers, kinds, strict=True):
        offered = question.rpartition(": ")[2].removesuffix("?").split(", ")
        options = offered if answer in offered else sorted(of_kind[kind])
        found.append([option for option in options if option != answer])
    return found
