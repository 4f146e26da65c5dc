"""Captions of made scenes, true ones and corrupted ones, all put into words from facts by the same sentences."""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import replace

import numpy as np

from src.dataset.scene_canvas import pick
from src.dataset.scene_facts import INVERSE, Facts, draw_facts, largest_count
from src.dataset.scene_kinds import KINDS, colours_of

CORRUPTIONS = (
    "other_scene", "wrong_object", "wrong_count", "wrong_colour", "wrong_relation",
    "invented_object", "vague", "off_topic", "garbled",
)  # fmt: skip
NEAR_MISSES = ("wrong_object", "wrong_count", "wrong_colour", "wrong_relation", "invented_object")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
# How often, in percent, a caption mentions each fact: often, since a wrong caption must mention the fact it has wrong,
# and mentioning it should not tell it from a right one.
SHARES = {
    "count": 75, "colour": 75, "relation": 62, "landmark": 35, "landmark_colour": 35, "place": 45, "extra": 85,
    "season": 10,
}  # fmt: skip
TOWARDS = {
    "left of": ("to the left of", "on the left of"), "right of": ("to the right of", "on the right of"),
    "above": ("above", "higher up than"), "below": ("below", "further down than"),
}  # fmt: skip
SIDES = {
    "left of": "on the left side",
    "right of": "on the right side",
    "above": "at the top",
    "below": "at the bottom",
}
VERBS = {
    **dict.fromkeys(("plane", "helicopter", "truck", "bus", "car", "tractor", "train", "locomotive"), "parked"),
    **dict.fromkeys(("ship", "sailing boat"), "floating"),
    **dict.fromkeys(("house", "cabin", "apartment block", "warehouse", "wind turbine", "storage tank"), "standing"),
}
TAILS = (", with {} nearby", ", and {} is nearby", ", and {} can be seen too")
VIEWS = ("an aerial image of", "an overhead view of", "a satellite image of", "the picture shows", "we can see")


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def subject(facts: Facts, rng: np.random.Generator, count: bool, colour: bool) -> str:
    """The counted things as a noun phrase, with their number and colour or without."""
    noun = f"{facts.colour} {facts.category}" if colour else facts.category
    single, loose = pick(rng, (True, False)), pick(rng, ("some", "several"))
    if facts.count == 1:
        return f"one {noun}" if count and single else article(noun)
    return f"{NUMBERS[facts.count] if count else loose if facts.count > 2 else 'some'} {plural(noun)}"


def finish(sentence: str, rng: np.random.Generator) -> str:
    """A sentence in one of two hands: lower case with spaced marks, or plain English."""
    if rng.integers(100) < 60:
        return sentence.replace(",", " ,") + " ."
    return sentence[0].upper() + sentence[1:] + "."


def caption(facts: Facts, rng: np.random.Generator, mention: AbstractSet[str] = frozenset()) -> str:
    """One sentence that is true of `facts` and mentions at least the facts named in `mention` (keys of SHARES)."""
    told = {name for name, share in SHARES.items() if rng.integers(100) < share or name in mention}
    form, towards = int(rng.integers(7)), int(rng.integers(2))
    near, view, tail = pick(rng, ("near", "next to", "beside")), pick(rng, VIEWS), pick(rng, TAILS)
    name, extra = pick(rng, KINDS[facts.kind].names), pick(rng, facts.extras or ("",))
    things = subject(facts, rng, "count" in told, "colour" in told)
    are = "is" if facts.count == 1 else "are"
    verb = "driving" if facts.kind == "motorway" else VERBS.get(facts.category, "located")
    colour = f"{facts.landmark_colour} " if "landmark_colour" in told else ""
    landmark = article(colour + facts.landmark)
    where = ""
    if "relation" in told:
        where = f" {TOWARDS[facts.relation][towards]} {landmark}"
    elif told & {"landmark", "landmark_colour"}:
        where = f" {near} {landmark}"
    place = f" {KINDS[facts.kind].preposition} {name}" if "place" in told or not where else ""
    back = f"{TOWARDS[INVERSE[facts.relation]][towards]}" if "relation" in told else near
    if form == 0 or (form > 4 and not where):
        sentence = f"{things} {are} {verb}{where}{place}"
    elif form == 1:
        sentence = f"there {are} {things}{where}{place}"
    elif form == 2:
        sentence = f"{place[1:]}, {things} {are} {verb}{where}" if place else f"{things} {are} seen{where}"
    elif form == 3:
        sentence = f"{view} {f'{name} with ' if place else ''}{things}{where}"
    elif form == 4:
        sentence = f"{name} with {things}{where}" if place else f"{things}{where}"
    elif form == 5 or "relation" not in told:
        sentence = f"{landmark} is {back} {things}{place}"
    else:
        sentence = f"{things} {are} {SIDES[facts.relation]} and {landmark} is {SIDES[INVERSE[facts.relation]]}{place}"
    if "extra" in told and facts.extras:
        sentence += tail.format(article(extra))
    if "season" in told and facts.season:
        sentence = f"in {facts.season}, {sentence}"
    return finish(sentence, rng)


def captions(facts: Facts, rng: np.random.Generator, n: int = 1) -> list[str]:
    """`n` true captions in different wordings (two may agree by chance)."""
    return [caption(facts, rng) for _ in range(n)]


def corrupt(facts: Facts, rng: np.random.Generator, kind: str | None = None) -> tuple[str, str]:
    """A caption that is false of the scene or says nothing of it, and its kind (drawn evenly when not given).

    Every kind of corruption applies to every scene: each has counted coloured things, a relation, and an extra that
    is missing. Raises KeyError for a kind not in CORRUPTIONS.
    """
    kind = kind or pick(rng, CORRUPTIONS)
    if kind == "vague":
        return vague(rng), kind
    if kind == "off_topic":
        return off_topic(rng), kind
    if kind == "garbled":
        return garbled(caption(facts, rng), rng), kind
    changed, mention = CHANGES[kind](facts, rng)
    return caption(changed, rng, mention), kind


def alike(facts: Facts, rng: np.random.Generator, kinds: Iterable[str]) -> tuple[str, dict[str, str]]:
    """A true caption and a wrong one of each kind; near misses use the words of the true one but for what is wrong.

    So neither their length nor what they mention gives them away. Where the scene has no extra that the true caption
    could name, an invented one would: that kind is then left out.
    """
    kinds = [kind for kind in kinds if kind != "invented_object" or facts.extras]
    near = {kind: CHANGES[kind](facts, rng) for kind in kinds if kind in NEAR_MISSES}
    mention = frozenset().union(*(told for _, told in near.values()))
    words = int(rng.integers(2**32))
    wrong = {kind: caption(changed, np.random.default_rng(words), mention) for kind, (changed, _) in near.items()}
    wrong |= {kind: corrupt(facts, rng, kind)[0] for kind in kinds if kind not in near}
    return caption(facts, np.random.default_rng(words), mention), {kind: wrong[kind] for kind in kinds}


def other_scene(facts: Facts, rng: np.random.Generator) -> tuple[Facts, AbstractSet[str]]:
    """The facts of a scene of another kind, with counted things this scene has none of."""
    while True:
        other = draw_facts(rng)
        if other.kind != facts.kind and other.category not in facts.things:
            return other, frozenset()


def wrong_object(facts: Facts, rng: np.random.Generator) -> tuple[Facts, AbstractSet[str]]:
    """The counted things, or in one of four the landmark, are taken for what the same kind of scene could hold.

    Where a kind of scene counts one category only, it is always the landmark.
    """
    rules = KINDS[facts.kind]
    marks = [name for name in rules.landmarks if name not in facts.things]
    things = [name for name in rules.counted if name not in facts.things]
    if not things or (marks and rng.integers(4) == 0):
        name = pick(rng, marks)
        colour = _colour_for(facts, rng, name, facts.landmark_colour)
        return replace(facts, landmark=name, landmark_colour=colour), {"landmark"}
    name = pick(rng, things)
    colour = _colour_for(facts, rng, name, facts.colour)
    return replace(facts, category=name, colour=colour), frozenset()


def _colour_for(facts: Facts, rng: np.random.Generator, name: str, colour: str) -> str:
    options = colours_of(facts.kind, facts.season, name)
    return colour if colour in options else pick(rng, options)


def wrong_count(facts: Facts, rng: np.random.Generator) -> tuple[Facts, AbstractSet[str]]:
    others = [n for n in range(1, largest_count(facts.category) + 1) if n != facts.count]
    return replace(facts, count=pick(rng, others)), {"count"}


def wrong_colour(facts: Facts, rng: np.random.Generator) -> tuple[Facts, AbstractSet[str]]:
    """Another colour for the counted things, or in one of four for the landmark."""
    if rng.integers(4) == 0:
        options = colours_of(facts.kind, facts.season, facts.landmark)
        colour = pick(rng, [c for c in options if c != facts.landmark_colour])
        return replace(facts, landmark_colour=colour), {"landmark_colour"}
    options = colours_of(facts.kind, facts.season, facts.category)
    return replace(facts, colour=pick(rng, [c for c in options if c != facts.colour])), {"colour"}


def wrong_relation(facts: Facts, _: np.random.Generator) -> tuple[Facts, AbstractSet[str]]:
    return replace(facts, relation=INVERSE[facts.relation]), {"relation"}


def invented_object(facts: Facts, rng: np.random.Generator) -> tuple[Facts, AbstractSet[str]]:
    """A secondary thing this kind of scene often has, but not this one, in the words used for real ones."""
    missing = [name for name in KINDS[facts.kind].extras if name not in facts.extras]
    return replace(facts, extras=(pick(rng, missing),)), {"extra"}


CHANGES = {
    "other_scene": other_scene, "wrong_object": wrong_object, "wrong_count": wrong_count,
    "wrong_colour": wrong_colour, "wrong_relation": wrong_relation, "invented_object": invented_object,
}  # fmt: skip


def vague(rng: np.random.Generator) -> str:
    """True of any overhead image, and so of no use."""
    what = pick(rng, ("some things", "several objects", "different parts", "a few objects", "many things", "an area"))
    how = pick(
        rng, ("of some size", "of different colours", "next to other things", "in several places", "on the ground")
    )
    where = pick(rng, ("", " in the picture", " in this place", " in the middle of the area", " near other parts"))
    opening = pick(rng, (*VIEWS, "there is a place with", "this is an area with", "it is an image of"))
    return finish(
        f"{opening} {what} {how}{where}{pick(rng, ('', ', and more can be seen too', ', with more nearby'))}", rng
    )


def off_topic(rng: np.random.Generator) -> str:
    """About the world, but nothing seen from above."""
    who = pick(
        rng,
        ("a man", "a young woman", "two children", "a brown dog", "three friends", "a white cat", "the band", "a chef"),
    )
    does = pick(rng, ("playing the guitar", "eating a red apple", "reading a book", "sleeping on a blue sofa",
                      "cooking soup", "riding a yellow bicycle", "laughing at a joke", "singing a song"))  # fmt: skip
    are = "are" if who in {"two children", "three friends"} else "is"
    where = pick(
        rng, ("", " in a kitchen", " on a stage", " beside a window", " near a green door", " at a birthday party")
    )
    return finish(
        f"{who} {are} {does}{where}{pick(rng, ('', ', with a cup of tea nearby', ', and music is playing'))}", rng
    )


def garbled(text: str, rng: np.random.Generator) -> str:
    """A true caption made unreadable: words in disorder, letters in disorder, or a piece said over and over."""
    words = text.split()
    way = int(rng.integers(3))
    if way == 0:
        order = [int(i) for i in rng.permutation(len(words))]
        order = order if order != sorted(order) else order[::-1]
        return " ".join(words[i] for i in order)
    if way == 1:
        return " ".join("".join(w[int(i)] for i in rng.permutation(len(w))) for w in words)
    start = int(rng.integers(max(1, len(words) - 3)))
    piece = words[start : start + 3]
    return " ".join((piece * len(words))[: len(words)])
