"""Rewards of reinforcement learning: how good a response is, in 0..1, by its kind; pure Python, shared by all engines.

A reward that cannot be computed is an error of its row, to be raised or masked. It never becomes 0.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from scipy.optimize import linear_sum_assignment

from src.errors import JobError, RecordError
from src.rewards import published
from src.rewards.answers import TAGS, answer_kind, judge, squash_answer
from src.rewards.boxes import Box, iou_table, parse_boxes

FORMAT_WEIGHT = 0.3  # the published run's
_RESPONSE = re.compile(r"<think>(.*)</think>\s*<answer>(.*)</answer>", re.S)
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?\d+)\}\{(-?\d+)\}")


@dataclass(frozen=True, kw_only=True)
class RewardRow:
    """A response with what it is measured by.

    Attributes:
        kind: a key of ``REWARDS``: ``em``, ``iou``, ``open_ended`` or ``math``.
        response: as the policy gave it, tags included.
        reference: what is right.
        question: and ``images``: what the response answers, for ``open_ended``.
        images: whatever the scorer takes.
        bounds: (of the reference, of the answer): boxes go from 0 to these; without them both are taken as they are.
    """

    kind: str
    response: str
    reference: str
    question: str = ""
    images: tuple[Any, ...] = ()
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Grade:
    """How good an answer is, in 0..1, and whether it could not be read (then it is 0)."""

    accuracy: float
    unparsed: bool = False


@dataclass(frozen=True)
class RewardResult:
    """The reward of a response and its parts, all in 0..1: ``overall = format * (w + (1 - w) * accuracy)``."""

    overall: float
    format: float
    accuracy: float
    unparsed: bool

    def parts(self) -> dict[str, float]:
        """The same keys for every response, good and bad, so that means over them mean something."""
        parts = {"overall": self.overall, "format": self.format, "accuracy": self.accuracy}
        return {**parts, "unparsed": float(self.unparsed)}


class PairScorer(Protocol):
    """Scores of answers to questions about images, by the score model: in process or through its server's client.

    Takes for each item (question, images, texts) and gives for each the scores of its texts, or the error that it met.
    """

    def __call__(
        self, items: Sequence[tuple[str, tuple[Any, ...], Sequence[str]]]
    ) -> Sequence[Sequence[float] | Exception]: ...


def read_response(response: str) -> str | None:
    """The answer of a response in the thinking format, or None where the format is not kept.

    ``<think>..</think>``, white space, ``<answer>..</answer>``, with nothing but white space around; each part says
    something and holds no further tag.
    """
    match = _RESPONSE.fullmatch(response.strip())
    if not match or any(not part.strip() or any(tag in part for tag in TAGS) for part in match.groups()):
        return None
    return match[2]


class ExactMatch:
    """1 if the answer is that of the reference (:func:`src.rewards.answers.judge`, kind by the reference), else 0."""

    name = "em"

    def __call__(self, answer: str, row: RewardRow) -> Grade:
        verdict = judge(answer_kind(row.reference), answer, row.reference)
        return Grade(float(verdict.right), verdict.unparsed)


class BoxOverlap:
    """Overlap of boxes: the best one-to-one pairs, IoU up to 0.5 worth nothing, over the larger number of boxes."""

    name = "iou"

    def check(self, row: RewardRow) -> None:
        if not parse_boxes(row.reference, "grpo_reference"):
            raise RecordError("no_reference_box", f"no box in the reference {row.reference!r}")

    def __call__(self, answer: str, row: RewardRow) -> Grade:
        true, said = parse_boxes(row.reference, "grpo_reference"), parse_boxes(answer)
        if not said:
            return Grade(0.0, unparsed=True)
        if row.bounds:
            true, said = (
                [_scaled(box, bound) for box in boxes] for boxes, bound in zip((true, said), row.bounds, strict=True)
            )
        iou = iou_table(true, said)
        worth = np.where(iou > 0.5, iou, 0.0)
        return Grade(float(worth[linear_sum_assignment(worth, maximize=True)].sum()) / max(len(true), len(said)))


class MathMatch:
    """1 if the last ``\\boxed{}`` of the answer, or all of it, equals that of the reference, numbers as fractions."""

    name = "math"

    def __call__(self, answer: str, row: RewardRow) -> Grade:
        return Grade(float(same_math(last_boxed(answer) or answer, last_boxed(row.reference) or row.reference)))


class OpenEnded:
    """How likely the answer is preferred to the reference: the sigmoid of the difference of their scores.

    That is the chance under the pairwise loss that the score model was trained with (Bradley and Terry, 1952).
    """

    name = "open_ended"

    def grade(self, answer_score: float, reference_score: float) -> Grade:
        difference = answer_score - reference_score
        if not math.isfinite(difference):
            raise RecordError("no_score", f"scores are not finite: {answer_score}, {reference_score}")
        small = math.exp(-abs(difference))
        return Grade((1.0 if difference >= 0 else small) / (1.0 + small))


REWARDS = {cls.name: cls for cls in (ExactMatch, BoxOverlap, OpenEnded, MathMatch)}


@dataclass
class Reward:
    """Rewards of responses, of all kinds in one call.

    Attributes:
        format_weight: what keeping the format is worth by itself, in 0..1.
        scorer: of ``open_ended`` rows; called once for all rows of a call that need it, and for those alone.
        compat: ``published`` computes what the published function does, faults included; for comparison.
        lost: the last error with which the scorer answered none of a call's rows: it has gone, and training should end.
    """

    format_weight: float = FORMAT_WEIGHT
    scorer: PairScorer | None = None
    compat: str | None = None
    lost: JobError | None = field(default=None, init=False)
    _rewards: dict[str, Any] = field(default_factory=lambda: {name: cls() for name, cls in REWARDS.items()}, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.format_weight <= 1:
            raise ValueError(f"format_weight={self.format_weight} is not in 0..1")
        if self.compat not in (None, "published"):
            raise ValueError(f"compat={self.compat!r} is neither None nor 'published'")

    def __call__(self, rows: Sequence[RewardRow]) -> list[RewardResult | RecordError]:
        """A result for every row, in order, or the error for which it has none.

        Errors have the kinds ``unknown_reward_type``, ``no_reference_box`` and ``no_score``.
        """
        results: list[RewardResult | RecordError | None] = []
        waiting: dict[int, str] = {}
        for number, row in enumerate(rows):
            try:
                results.append(self._without_scores(row, number, waiting))
            except RecordError as error:
                results.append(error)
        for number, scores in zip(waiting, self._scores(rows, waiting), strict=True):
            results[number] = self._with_scores(scores)
        return results  # type: ignore[return-value]  # every waiting row has got its own

    def _without_scores(self, row: RewardRow, number: int, waiting: dict[int, str]) -> RewardResult | None:
        reward = self._rewards.get(row.kind)
        if reward is None:
            known = ", ".join(self._rewards)
            raise RecordError("unknown_reward_type", f"unknown kind of reward {row.kind!r}; known are {known}")
        if self.compat:
            answer = row.response if published.published_format(row.response) else None
        else:
            if isinstance(reward, BoxOverlap):
                reward.check(row)
            answer = read_response(row.response)
        if answer is None:
            return RewardResult(0.0, 0.0, 0.0, unparsed=False)
        if isinstance(reward, OpenEnded):
            waiting[number] = answer
            return None
        return self._result(self._published_grade(row) if self.compat else reward(answer, row))

    def _scores(
        self, rows: Sequence[RewardRow], waiting: dict[int, str]
    ) -> Sequence[Sequence[float] | Exception | None]:
        if not waiting:
            return []
        if self.scorer is None:
            return [None] * len(waiting)
        items = [(rows[k].question, rows[k].images, [text.strip(), rows[k].reference]) for k, text in waiting.items()]
        scores: Sequence[Sequence[float] | Exception]
        try:
            scores = self.scorer(items)
        except Exception as error:  # whatever it was, no row may be taken for a bad answer
            scores = [error] * len(items)
        gone = [one for one in scores if isinstance(one, JobError)]
        if len(gone) == len(items):
            self.lost = gone[0]
        return scores

    def _with_scores(self, scores: Sequence[float] | Exception | None) -> RewardResult | RecordError:
        if self.compat:
            pair = scores if isinstance(scores, Sequence) else (None, None)
            return self._result(Grade(published.published_open_ended(*pair)))
        if not isinstance(scores, Sequence):
            reason = "no scorer was given" if scores is None else f"{type(scores).__name__}: {scores}"
            return RecordError("no_score", f"the score of the answer could not be had ({reason})")
        try:
            return self._result(self._rewards["open_ended"].grade(*scores))
        except RecordError as error:
            return error

    def _result(self, grade: Grade) -> RewardResult:
        overall = self.format_weight + (1 - self.format_weight) * grade.accuracy
        return RewardResult(overall, 1.0, grade.accuracy, grade.unparsed)

    def _published_grade(self, row: RewardRow) -> Grade:
        if row.kind == "math":
            said = last_boxed(row.response) or row.response
            return Grade(float(same_math(said, last_boxed(row.reference) or row.reference)))
        grade = published.published_em if row.kind == "em" else published.published_iou
        return Grade(grade(row.response, row.reference))


def last_boxed(text: str) -> str | None:
    """What is inside the last complete ``\\boxed{...}`` of a text."""
    found = None
    for match in re.finditer(r"\\boxed\{", text):
        depth = 1
        for at in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                found = text[match.end() : at]
                break
    return found


def same_math(a: str, b: str) -> bool:
    """Whether two answers are one number, or one text in plain form."""
    numbers = (_number(a), _number(b))
    if None not in numbers:
        return numbers[0] == numbers[1]
    return bool(squash_answer(a)) and squash_answer(a) == squash_answer(b)


def _number(text: str) -> Fraction | None:
    plain = re.sub(r"\\text\{[^{}]*\}|[\s$]", "", text)
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", plain)
    if match := _FRACTION.fullmatch(plain):
        plain = f"{match[1]}{match[2]}/{match[3]}"
    try:
        return Fraction(plain) if re.fullmatch(r"-?[\d.]+(?:/-?\d+)?", plain) else None
    except (ValueError, ZeroDivisionError):
        return None


def _scaled(box: Box, bound: float) -> Box:
    x1, y1, x2, y2 = (value / bound for value in box)
    return x1, y1, x2, y2
