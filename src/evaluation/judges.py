"""Scores of candidates, by a score model or by CLIP, kept on disk by judge: what is known is not scored again."""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from src.curation.scorer import WINDOW, Scorer
from src.errors import RecordError
from src.evaluation.answer_parts import cut_torn_line, digest
from src.evaluation.features import FeatureStore
from src.rewards.answers import final_answer

PARTS = ("answer", "response")
Judged = list[float | RecordError]


@dataclass(frozen=True)
class Question:
    """A question with what is to be scored.

    Attributes:
        key: of the question in :class:`ScoreFile`.
        images: paths.
        text: as the model was asked.
        answers: distinct.
    """

    key: str
    images: tuple[str, ...]
    text: str
    answers: list[str]


Windows = Iterable[Sequence[Question]]
Judge = Callable[[Windows], Iterator[list[Judged]]]
"""Yields for each window of questions the scores of their answers; higher is better."""


def part_of(text: str, part: str) -> str:
    """What is scored of a candidate: its ``answer``, without reasoning and tags, or all of the ``response``."""
    return final_answer(text) if part == "answer" else text.strip()


def score_model(scorer: Scorer) -> Judge:
    """The score model, in the form it was trained on: candidates of a question share images and prompt."""

    def judge(windows: Windows) -> Iterator[list[Judged]]:
        begun: deque[Sequence[Question]] = deque()  # the scorer reads ahead

        def pairs() -> Iterator[list[dict[str, Any]]]:
            for questions in windows:
                begun.append(questions)
                yield [{"images": q.images, "question": q.text, "text": a} for q in questions for a in q.answers]

        for scored in scorer.stream(pairs()):
            told = iter(one.error or one.score for one in scored)
            yield [[next(told) for _ in q.answers] for q in begun.popleft()]  # type: ignore[misc]  # error or score

    return judge


def clip_model(store: FeatureStore, image_root: Path) -> Judge:
    """Logits of a question's first image with each answer; the question follows, for a long text loses its end."""

    def judge(windows: Windows) -> Iterator[list[Judged]]:
        scale = store.clip.logit_scale
        for questions in windows:
            shown = [q.images[0] for q in questions]
            images = store.images(shown, shown.copy, image_root)
            said = iter(store.texts([f"{a}\n{q.text}" for q in questions for a in q.answers]).vectors.double())
            told: list[Judged] = []
            for number, (question, image) in enumerate(zip(questions, images.vectors.double(), strict=True)):
                logits = [scale * float(image @ next(said)) for _ in question.answers]
                error = images.errors.get(number)
                told.append([error or (logit if answer else RecordError("empty_text", "the answer is empty"))
                             for logit, answer in zip(logits, question.answers, strict=True)])  # fmt: skip
            yield told

    return judge


@dataclass
class ScoreFile:
    """The scores of one judge: a JSON Lines file, the judge in its first line, then a score or an error each.

    Attributes:
        path: of the file; its stem is the judge's name.
        judge: what scores depend on besides the question and the answer; with another one the file begins anew.
        scores: by :meth:`key`.
        errors: by kind, of what could not be scored; it is tried again in the next run.
    """

    path: Path
    judge: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, path: Path) -> "ScoreFile":
        """Read a file; a line that a kill has torn is passed over."""
        found = cls(path)
        for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else []):
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if number == 0:
                found.judge = told
            elif told["score"] is not None:
                found.scores[told["key"]] = told["score"]
        return found

    @staticmethod
    def key(question: str, answer: str) -> str:
        """Of an answer to a question."""
        return digest(question, answer)

    def add(self, judge: dict[str, Any], questions: Sequence[Question], load: Callable[[], Judge]) -> int:
        """Score what has no score yet, and return how many answers that were.

        Args:
            load: loads the judge; called only if there is something to score.
        """
        judge = json.loads(json.dumps(judge, default=str))
        if self.judge != judge:
            if self.judge:
                print(f"{self.path} is of another judge: begun anew")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(judge) + "\n", encoding="utf-8")
            self.judge, self.scores = judge, {}
        todo = [left for q in questions if (left := self._left(q)).answers]
        total = sum(len(q.answers) for q in todo)
        if not todo:
            return 0
        windows = list(_windows(todo))
        with self.path.open("ab+") as file, tqdm(total=total, desc=self.path.stem, unit="answer") as bar:
            cut_torn_line(file)
            for some, scored in zip(windows, load()(windows), strict=True):
                for question, row in zip(some, scored, strict=True):
                    for answer, one in zip(question.answers, row, strict=True):
                        self._write(file, self.key(question.key, answer), one)
                    bar.update(len(question.answers))
                file.flush()
        return total

    def _left(self, question: Question) -> Question:
        left = [answer for answer in question.answers if self.key(question.key, answer) not in self.scores]
        return Question(question.key, question.images, question.text, left)

    def _write(self, file: Any, key: str, one: float | RecordError) -> None:
        if isinstance(one, RecordError):
            self.errors[one.kind] += 1
            told: dict[str, Any] = {"key": key, "score": None, "error": one.kind}
        else:
            self.scores[key] = one
            told = {"key": key, "score": one, "error": None}
        file.write(json.dumps(told).encode() + b"\n")


def _windows(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """Whole questions, together of as many answers as the scorer's window, or one of more."""
    some: list[Question] = []
    for question in questions:
        if some and sum(len(q.answers) for q in some) + len(question.answers) > WINDOW:
            yield some
            some = []
        some.append(question)
    if some:
        yield some
