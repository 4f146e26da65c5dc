"""Rules of selection: what a rule may say, in words that a YAML file and a command line share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from src.errors import JobError

OWN_COLUMNS = ("score", "random", "text_chars")  # what ``by`` may name without a file
OWN_GROUPS = ("source", "row")
WAYS = ("fraction", "threshold", "per_group", "all", "any")
BOUNDS = ("min_width", "max_width", "min_height", "max_height", "min_chars", "max_chars")
FILTERS = (*BOUNDS, "language", "unique")
SHAPING = ("by", "scores_from", "group_by", "temperature", "seed", *FILTERS)  # have no meaning beside all or any


@dataclass(frozen=True)
class Rule:
    """Which of the scored pairs to keep: one way to cut, after the filters.

    A rule is judged on its own: its filters first, then the cut among the pairs that pass them. ``all`` and ``any``
    join the *results* of other rules: each rule inside is judged on all scored pairs, never on what another one left,
    so half of a half by ``all`` is not a quarter.

    Attributes:
        fraction: keep this part (0 < f <= 1), rounded down, at least one pair; with ``group_by`` of each group.
        threshold: keep every pair whose value is at least this.
        by: the value that the cut goes by, the highest kept: ``score``, ``random`` (0 to 1, from ``seed`` and id),
            ``text_chars``, or a numeric column of ``scores_from``.
        scores_from: Parquet file with a column ``id`` and values made elsewhere, for ``by``, ``group_by``, ``language``
            and ``unique``.
        group_by: ``source``, ``row`` (the captions of one record) or a column of ``scores_from``.
        per_group: keep at most this many pairs of each group, its best.
        temperature: draw without replacement instead of cutting, a pair with the weight exp(value / temperature):
            a high one is near to chance, a low one near to the cut.
        seed: of ``by: random`` and of the draw.
        min_width, max_width, min_height, max_height: pixels, bounds included; pairs without an image do not pass.
        min_chars, max_chars: characters of text, bounds included.
        language: a code, or several, that the column ``language`` of ``scores_from`` must hold.
        unique: column of ``scores_from`` of which each value is wanted once, such as ``phash_group``: of the records
            that share a value only the one whose best pair has the highest ``by`` (of equal ones the lowest id) passes,
            with all its captions. It comes after the other filters and before the cut; null is shared with nothing.
        nan: what to do with a value that is not a finite number, ``refuse`` or ``drop``; said once, by the outermost
            rule.
        all: keep what every one of these rules keeps.
        any: keep what at least one of these rules keeps.

    Raises:
        JobError: a value out of range or keys that contradict each other, by name.
    """

    fraction: float | None = None
    threshold: float | None = None
    by: str = "score"
    scores_from: str | None = None
    group_by: str | None = None
    per_group: int | None = None
    temperature: float | None = None
    seed: int = 0
    min_width: int | None = None
    max_width: int | None = None
    min_height: int | None = None
    max_height: int | None = None
    min_chars: int | None = None
    max_chars: int | None = None
    language: str | tuple[str, ...] | None = None
    unique: str | None = None
    nan: str = "refuse"
    all: tuple["Rule", ...] | None = None
    any: tuple["Rule", ...] | None = None

    def __post_init__(self) -> None:
        self._check_ways()
        self._check_ranges()
        self._check_value()
        for name, rules in (("all", self.all), ("any", self.any)):
            if rules is not None and not rules:
                raise JobError(f"{name} must hold at least one rule")
            if rules and (extra := [key for key in self.given() if key in SHAPING]):
                raise JobError(f"{extra[0]} has no meaning beside {name}; give it to the rules inside {name}")
            if any(rule.nan != "refuse" for rule in rules or ()):
                raise JobError(f"nan belongs to the outermost rule, not to the rules inside {name}")

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any], scores_from: str | None = None) -> "Rule":
        """A rule of the keys of a YAML file, with rules inside ``all`` and ``any`` as lists of such keys.

        Args:
            scores_from: the file of those rules, this one or inside it, that need one and name none.

        Raises:
            JobError: unknown key, wrong type or bad value; ``all[1]`` in front says in which rule inside.
        """
        known = [field.name for field in fields(cls)]
        for key, value in keys.items():
            if key not in known:
                raise JobError(f"unknown key {key} of a rule; known keys: {', '.join(known)}")
            _check_type(key, value)
        made = dict(keys)
        for name in ("all", "any"):
            if keys.get(name) is not None:
                made[name] = _inner_rules(name, keys[name], scores_from)
        if isinstance(made.get("language"), list):
            made["language"] = tuple(made["language"])
        if scores_from and not made.get("scores_from") and _outside_keys(made):
            made["scores_from"] = scores_from
        return cls(**made)

    def given(self) -> dict[str, Any]:
        """The keys that differ from their defaults, as ``from_keys`` takes them."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: value for name, value in found.items() if value != type(self).__dict__[name]}
        if isinstance(self.language, tuple):
            changed["language"] = list(self.language)
        return {n: [rule.given() for rule in v] if n in ("all", "any") else v for n, v in changed.items()}

    def describe(self) -> str:
        """The rule in one line: ``fraction=0.3 and group_by=source``."""
        words = []
        for name, value in self.given().items():
            if name in ("all", "any"):
                inner = f"[{', '.join(rule.describe() for rule in getattr(self, name))}]"
                words.append(f"{name}={inner}")
            else:
                words.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
        return " and ".join(words) or "neither"

    @property
    def is_plain(self) -> bool:
        """Whether all kept scores lie above all dropped ones, but for ties: one cut through the score."""
        return set(self.given()) <= {"fraction", "threshold", "seed", "nan"}

    def _check_ways(self) -> None:
        ways = [name for name in WAYS if getattr(self, name) is not None]
        filters = [name for name in FILTERS if getattr(self, name) is not None]
        if len(ways) > 1 or not (ways or filters):
            said = " and ".join(f"{name}={_short(getattr(self, name))}" for name in ways) or "neither"
            others = "or, in their place, one of per_group, all and any, or filters alone"
            raise JobError(f"give exactly one of fraction and threshold, not {said}; {others}")
        if self.per_group is not None and self.group_by is None:
            raise JobError("per_group needs group_by: source, row or a column of scores_from")
        if self.group_by is not None and self.fraction is None and self.per_group is None:
            raise JobError("group_by needs fraction (of each group) or per_group (at most so many of each)")
        if self.temperature is not None and self.fraction is None and self.per_group is None:
            raise JobError("temperature needs fraction or per_group: how much to draw")
        for bound in ("width", "height", "chars"):
            low, high = getattr(self, f"min_{bound}"), getattr(self, f"max_{bound}")
            if low is not None and high is not None and low > high:
                raise JobError(f"min_{bound}={low} is above max_{bound}={high}: no pair can pass")

    def _check_ranges(self) -> None:
        if self.fraction is not None and not 0 < self.fraction <= 1:
            hint = f"; did you mean {self.fraction / 100:g}?" if 1 < self.fraction <= 100 else ""
            raise JobError(f"fraction must be above 0 and at most 1, not {self.fraction:g}{hint}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise JobError(f"threshold must be a finite number, not {self.threshold}")
        if self.per_group is not None and self.per_group < 1:
            raise JobError(f"per_group must be at least 1, not {self.per_group}")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise JobError(f"temperature must be above 0, not {self.temperature:g}")
        for name in BOUNDS:
            if (value := getattr(self, name)) is not None and value < 0:
                raise JobError(f"{name} must not be negative, not {value}")
        codes = (self.language,) if isinstance(self.language, str) else self.language
        if codes is not None and not (codes and all(isinstance(code, str) and code for code in codes)):
            raise JobError(f"language must be a code such as en or a list of codes, not {self.given()['language']!r}")
        if self.unique == "":
            raise JobError("unique must be a column of scores_from, not ''")
        if self.nan not in ("refuse", "drop"):
            raise JobError(f"nan must be refuse or drop, not {self.nan!r}")

    def _check_value(self) -> None:
        outside = _outside_keys({field.name: getattr(self, field.name) for field in fields(self)})
        if not self.by or ("by" in outside and not self.scores_from):
            raise JobError(f"by must be {', '.join(OWN_COLUMNS)} or a column of scores_from, not {self.by!r}")
        if "group_by" in outside and not self.scores_from:
            raise JobError(f"group_by must be source, row or a column of scores_from, not {self.group_by!r}")
        if outside and not self.scores_from:
            raise JobError(f"{outside[0]} needs scores_from: a file with such a column, which measure_pairs.py writes")
        if self.scores_from and not outside:
            raise JobError(f"scores_from is not used: by={self.by} is the table's own; name a column of the file")
        if self.by == "random" and self.temperature is not None:
            raise JobError("temperature has no meaning with by=random, which is a draw already")


def _outside_keys(keys: Mapping[str, Any]) -> list[str]:
    """Those of the keys that speak of a column of ``scores_from``."""
    own = {"by": (None, *OWN_COLUMNS), "group_by": (None, *OWN_GROUPS), "unique": (None,), "language": (None,)}
    return [key for key, values in own.items() if keys.get(key) not in values]


def _inner_rules(name: str, rules: Any, scores_from: str | None) -> tuple[Rule, ...]:
    made = []
    for number, keys in enumerate(rules):
        try:
            if not isinstance(keys, Mapping):
                raise JobError(f"must be a rule such as {{fraction: 0.3}}, not {keys!r}")
            made.append(Rule.from_keys(keys, scores_from))
        except JobError as error:
            raise JobError(f"{name}[{number}]: {error}") from None
    return tuple(made)


def _check_type(key: str, value: Any) -> None:
    if value is None and Rule.__dict__[key] is None:
        return
    wanted: tuple[type, ...] = (int,)
    words = "a whole number"
    if key in ("fraction", "threshold", "temperature"):
        wanted, words = (int, float), "a number"
    elif key in ("by", "scores_from", "group_by", "unique", "nan"):
        wanted, words = (str,), "a word"
    elif key == "language":
        wanted, words = (str, list, tuple), "a code or a list of codes"
    elif key in ("all", "any"):
        wanted, words = (list, tuple), "a list of rules"
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise JobError(f"{key} must be {words}, not {value!r}")


def _short(value: Any) -> str:
    return f"{len(value)} rules" if isinstance(value, tuple) else f"{value:g}"
