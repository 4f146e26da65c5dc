"""What is said in a chat, how it is put to the model, and what of it is shown. No web framework in here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from src.chat import IMAGE, thinking_prompt
from src.errors import RecordError
from src.evaluation.backends import Request
from src.rewards.answers import TAGS, final_answer
from src.serving.web.models import Growth
from src.serving.web.pictures import answer_boxes, data_uri, draw_boxes, open_upload, small_copy

MAX_IMAGES = 8  # of a conversation
MAX_CHARS = 8000  # of a question
_UNFINISHED_TAG = re.compile("|".join(f"{re.escape(tag[:n])}$" for tag in TAGS for n in range(len(tag) - 1, 0, -1)))


@dataclass(frozen=True)
class Reading:
    """A model's text, taken apart.

    Attributes:
        thinking: what stands between the think tags, or after an open one; "" without any.
        answer: the rest, out of its answer tags.
        thought: the thinking has come to its end.
        whole: no tag is left open.
    """

    thinking: str
    answer: str
    thought: bool = True
    whole: bool = True


def read_answer(text: str, growing: bool = False) -> Reading:
    """Take a text apart, also one that still grows or was cut off: tags are never shown, whole or in part.

    >>> read_answer("<think>two piers, so")
    Reading(thinking='two piers, so', answer='', thought=False, whole=False)
    """
    if growing:
        text = _UNFINISHED_TAG.sub("", text)
    before, opened, after = text.partition("<think>")
    thinking, closed, said = after.partition("</think>") if opened and not before.strip() else ("", "none", text)
    if not closed:
        return Reading(thinking.strip(), "", thought=False, whole=False)
    return Reading(thinking.strip(), final_answer(text), whole=("<answer>" in said) == ("</answer>" in said))


@dataclass
class Turn:
    """A question and its answer.

    Attributes:
        images: paths of what was uploaded with the question.
        shown: small copies of them, as data URIs.
        text: what the model said, tags and all.
        state: ``waiting``, ``growing``, ``done``, ``stopped``, ``cut`` (as long as was allowed) or ``failed``.
        note: a sentence about the answer, such as why there is none.
        boxed: the last image seen, with the boxes of the answer drawn, as a data URI; "" without boxes.
        score: of the answer, once asked for; a sentence where it has none.
    """

    question: str
    images: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    text: str = ""
    state: str = "waiting"
    note: str = ""
    boxed: str = ""
    score: float | str | None = None


@dataclass
class Conversation:
    """The turns of one visitor.

    Attributes:
        notice: a sentence for the visitor, such as what is wrong with an upload.
    """

    turns: list[Turn] = field(default_factory=list)
    notice: str = ""

    def ask(self, question: str, images: Sequence[str]) -> Turn | None:
        """Add a turn, or set ``notice`` to what is wrong with it."""
        self.notice = ""
        have = sum(len(turn.images) for turn in self.turns)
        if not question.strip() and not images:
            self.notice = "Type a question or add a picture first."
        elif len(question) > MAX_CHARS:
            self.notice = f"The question has {len(question):,} characters; at most {MAX_CHARS:,} are taken."
        elif have + len(images) > MAX_IMAGES:
            self.notice = f"A conversation holds at most {MAX_IMAGES} pictures; clear it to go on with others."
        try:
            opened = [] if self.notice else [open_upload(path) for path in images]
        except RecordError as error:
            self.notice = str(error)
        if self.notice:
            return None
        shown = [data_uri(small_copy(image)) for image in opened]
        self.turns.append(Turn(question.strip(), list(images), shown))
        return self.turns[-1]

    def again(self) -> Turn | None:
        """Forget the last answer, so that it can be made anew."""
        self.notice = ""
        if self.turns:
            last = self.turns[-1]
            self.turns[-1] = Turn(last.question, last.images, last.shown)
        return self.turns[-1] if self.turns else None

    def request(self, reasoning: bool) -> Request:
        """The conversation as the model gets it: earlier answers without their reasoning."""
        said = system_turn(reasoning)
        for turn in self.turns:
            marks = "" if turn.question.count(IMAGE) == len(turn.images) else f"{IMAGE}\n" * len(turn.images)
            said.append({"role": "user", "content": marks + turn.question})
            if turn is not self.turns[-1]:
                said.append({"role": "assistant", "content": read_answer(turn.text).answer})
        return Request(said, [path for turn in self.turns for path in turn.images])

    def images_until(self, turn: Turn) -> list[str]:
        """Paths of all images that the answer of a turn may speak of."""
        return [path for each in self.turns[: self.turns.index(turn) + 1] for path in each.images]

    def grow(self, turn: Turn, growth: Growth) -> None:
        """Take over what has become of an answer."""
        turn.text = growth.texts[0] if growth.texts else ""
        turn.state = "waiting" if growth.waiting else "growing"
        if not growth.done:
            return
        turn.state, turn.note = "done", ""
        if growth.error:
            turn.state, turn.note = "failed", growth.error
        elif growth.stopped:
            turn.state, turn.note = "stopped", "Stopped."
        elif not read_answer(turn.text).whole:
            turn.state, turn.note = "cut", "Cut off; allow more tokens under Sampling."
        elif not turn.text.strip():
            turn.note = "The model ended at once, without a word."
        images = self.images_until(turn)
        if images and (boxes := answer_boxes(turn.text)):
            turn.boxed = data_uri(draw_boxes(small_copy(open_upload(images[-1])), boxes))

    def shown(self) -> dict[str, Any]:
        """What the page shows, as plain values for JSON; every text is to be shown as text."""
        return {"notice": self.notice, "turns": [_shown(turn) for turn in self.turns]}


def system_turn(reasoning: bool) -> list[dict[str, str]]:
    """The turn that asks for reasoning, if that is wanted."""
    return [{"role": "system", "content": thinking_prompt()}] if reasoning else []


def _shown(turn: Turn) -> dict[str, Any]:
    reading = read_answer(turn.text, growing=turn.state == "growing")
    return {
        "question": turn.question,
        "images": turn.shown,
        "thinking": reading.thinking,
        "thought": reading.thought,
        "answer": reading.answer,
        "state": turn.state,
        "note": turn.note,
        "boxed": turn.boxed,
        "score": turn.score if isinstance(turn.score, float) else None,
        "unscored": turn.score if isinstance(turn.score, str) else "",
    }
