"""Near misses of any English caption of an overhead image: one thing, number, colour or relation changed, or damage.

Only words that are there can be changed, so not every kind applies to every caption. The changed caption contradicts
the original one, but not always the image: a picture may hold a bridge that its caption does not mention.
"""

import re
from collections.abc import Callable, Iterable

import numpy as np

Edit = Callable[[str, np.random.Generator], str | None]

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COLOURS = ("red", "blue", "white", "black", "green", "yellow", "grey", "gray", "brown", "orange")
OPPOSITES = {
    "left": "right", "above": "below", "top": "bottom", "north": "south", "east": "west", "upper": "lower",
    "inside": "outside", "many": "few", "dense": "sparse", "large": "small", "big": "tiny", "straight": "curved",
    "near": "far from", "beside": "far from", "surrounded by": "away from",
}  # fmt: skip
# Words within a group may be two names of one thing, so a word is swapped for one of another group.
THINGS = (
    ("airport", "runway"), ("plane", "airplane", "aircraft"), ("harbor", "harbour", "port"), ("ship", "boat"),
    ("bridge",), ("river",), ("lake", "pond", "pool"), ("sea", "ocean"), ("beach",), ("island",), ("desert",),
    ("forest", "wood"), ("mountain", "hill"), ("meadow", "grassland", "lawn"), ("farmland", "field"), ("stadium",),
    ("playground",), ("school",), ("church",), ("factory",), ("storage tank", "tank"), ("railway", "railroad"),
    ("station",), ("viaduct", "overpass"), ("parking lot", "car park"), ("car",), ("truck",), ("house", "building"),
    ("park",), ("square", "plaza"), ("court",), ("resort",), ("center", "hall"), ("tree",), ("road", "street"),
)  # fmt: skip
_GROUP = {word: group for group in THINGS for word in group}


_WRONG_OPPOSITES = {**OPPOSITES, **{new: old for old, new in OPPOSITES.items() if " " not in new}}


def _any_of(words: Iterable[str], ending: str = "()") -> re.Pattern[str]:
    """A pattern for whole words, longest first: group 1 the word, group 2 its ending."""
    options = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    return re.compile(rf"\b({options}){ending}\b", re.IGNORECASE)


def edit_caption(text: str, kind: str, rng: np.random.Generator) -> str | None:
    """Return the caption with one change of a kind in :data:`EDITS`, or None where that kind does not apply.

    Raises:
        KeyError: no such kind.
    """
    changed = EDITS[kind](text, rng)
    return changed if changed is not None and changed.strip() and changed != text else None


def _swap(pattern: re.Pattern[str], choose: Callable[[str, np.random.Generator], str]) -> Edit:
    """An edit that replaces every occurrence of one word that the pattern finds, plural and capital kept."""

    def edit(text: str, rng: np.random.Generator) -> str | None:
        found = sorted({match[1].lower() for match in pattern.finditer(text)})
        if not found:
            return None
        old = found[int(rng.integers(len(found)))]
        new = choose(old, rng)

        def replaced(match: re.Match[str]) -> str:
            if match[1].lower() != old:
                return match[0]
            word = _plural(new) if match[2] else new
            return word.capitalize() if match[1][0].isupper() else word

        return _mend_articles(pattern.sub(replaced, text))

    return edit


def _other_thing(old: str, rng: np.random.Generator) -> str:
    groups = [group for group in THINGS if group is not _GROUP[old]]
    return groups[int(rng.integers(len(groups)))][0]


def _other(options: tuple[str, ...]) -> Callable[[str, np.random.Generator], str]:
    def choose(old: str, rng: np.random.Generator) -> str:
        same = {"grey", "gray"} if old in {"grey", "gray"} else {old}
        left = [option for option in options if option not in same]
        return left[int(rng.integers(len(left)))]

    return choose


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")


def _mend_articles(text: str) -> str:
    """``a`` or ``an`` as the next word's first letter asks for, so that the article does not give the edit away."""

    def mend(match: re.Match[str]) -> str:
        article = "an" if match[2][0].lower() in "aeio" or match[2].lower().startswith("over") else "a"
        return (article.capitalize() if match[1][0].isupper() else article) + " " + match[2]

    return re.sub(r"\b(an?) (\w+)", mend, text, flags=re.IGNORECASE)


def _truncated(text: str, rng: np.random.Generator) -> str | None:
    words = text.split()
    if len(words) < 5:
        return None
    return " ".join(words[: int(rng.integers(2, 1 + len(words) // 2))])


def _misspelt(text: str, rng: np.random.Generator) -> str | None:
    """Two neighbouring inner letters swapped, or one lost, in about a third of the longer words, at least in one."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if not long:
        return None
    for i in rng.choice(long, size=max(1, len(long) // 3), replace=False):
        word = words[int(i)]
        at = int(rng.integers(1, len(word) - 2))
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        words[int(i)] = swapped if rng.random() < 0.5 and swapped != word else word[:at] + word[at + 1 :]
    return " ".join(words)


EDITS: dict[str, Edit] = {
    "wrong_object": _swap(_any_of(_GROUP, "(s|es)?"), _other_thing),
    "wrong_count": _swap(_any_of(NUMBERS), _other(NUMBERS)),
    "wrong_colour": _swap(_any_of(COLOURS), _other(COLOURS)),
    "wrong_relation": _swap(_any_of(_WRONG_OPPOSITES), lambda old, _: _WRONG_OPPOSITES[old]),
    "truncated": _truncated,
    "misspelt": _misspelt,
}
