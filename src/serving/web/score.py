"""The tab that scores texts about a picture: given ones, ranked, or the best of N that the model makes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from src.errors import JobError, RecordError
from src.evaluation.backends import Request
from src.serving.web.chat import QUEUE, QUIET, Stops, read_sampling, sampling_controls
from src.serving.web.conversation import MAX_CHARS, read_answer, system_turn
from src.serving.web.models import MOST_TEXTS, Growth, Models
from src.serving.web.pictures import data_uri, example_picture, open_upload, small_copy
from src.serving.web.view import view

MAX_TEXTS = 64
HINT = "Add a picture, then rank texts about it, or ask for the best of several answers."
TEXTS = (
    "two white planes beside a terminal .",
    "red tents beside a green lake in a forest .",
    "an aerial picture",
    "many ships are moored in a harbour .",
)
Shown = dict[str, Any]


class ScoreTab:
    """What the buttons of the tab do.

    Args:
        reasoning: ask the model to think before it answers.
    """

    def __init__(self, models: Models, reasoning: bool, stops: Stops):
        self.models, self.reasoning, self.stops = models, reasoning, stops

    def build(self) -> None:
        """Lay the tab out inside the current page."""
        with gr.Row(elem_classes="score"):
            with gr.Column(scale=2, min_width=300):
                picture = gr.File(
                    label="Picture", file_types=["image"], type="filepath", height=130, elem_id="score-picture"
                )
                example = gr.Button("Made scene", size="sm")
                question = gr.Textbox(
                    label="Question", placeholder="none: the texts are captions", max_lines=4, elem_id="score-question"
                )
                with gr.Tabs():
                    with gr.Tab("Rank texts"):
                        texts = gr.Textbox(
                            "\n".join(TEXTS), label="Texts, one a line", lines=5, max_lines=12, elem_id="score-texts"
                        )
                        rank = gr.Button("Score", variant="primary")
                    with gr.Tab("Best of N"):
                        many = gr.Slider(1, MOST_TEXTS, 8, step=1, label="N", info="answers to draw")
                        controls = sampling_controls(1.0, 1024 if self.reasoning else 128)
                        with gr.Row(elem_classes="tools"):
                            draw = gr.Button("Ask and choose", variant="primary", min_width=140)
                            stop = gr.Button("Stop", min_width=80, interactive=False)
            with gr.Column(scale=3, min_width=300):
                ranking = view("ranking", {"hint": HINT})
        asked = [picture, question]
        picture.change(look, picture, ranking, concurrency_limit=4, **QUIET)
        rank.click(self.rank, [*asked, texts], ranking, concurrency_id="scorer", concurrency_limit=8, **QUIET)
        draw.click(self.best_of, [*asked, many, *controls], [ranking, stop], **QUIET, **QUEUE)
        stop.click(self.stops.end_of, None, None, queue=False, **QUIET)
        example.click(example_picture, None, picture, queue=False, **QUIET)

    def rank(self, path: str | None, question: str, given: str) -> Shown:
        """Rank the lines of a text by their score."""
        lines = [line.strip() for line in given.splitlines() if line.strip()]
        shown = look(path)
        if wrong := _wrong(path, shown, question, lines):
            return shown | {"notice": wrong}
        return shown | {"rows": ranked(lines, self.models.score([path], question, lines))}

    def best_of(
        self, request: gr.Request, path: str | None, question: str, n: int, *sampling: Any
    ) -> Iterator[tuple[Any, Any]]:
        """Draw N answers while they are seen to grow, then rank them."""
        shown = look(path)
        try:
            if wrong := _wrong(path, shown, question):
                raise JobError(wrong)
            drawn = read_sampling(sampling, n=max(1, min(MOST_TEXTS, int(n))))
        except JobError as error:
            yield shown | {"notice": str(error)}, gr.skip()
            return
        asking = Request([*system_turn(self.reasoning), {"role": "user", "content": question}], [str(path)])
        growth = Growth()
        for growth in self.models.answer(asking, drawn, self.stops.begin(request.session_hash)):
            word = "Waiting for the model …" if growth.waiting else "Asking …"
            rows = [_row(text, growing=True) for text in growth.texts]
            yield shown | {"progress": word, "rows": rows}, gr.Button(interactive=True)
        idle = gr.Button(interactive=False)
        if growth.error or not growth.texts:
            yield shown | {"notice": growth.error or "Stopped before a word was said."}, idle
            return
        answers = [read_answer(text).answer for text in growth.texts]
        rows = ranked(growth.texts, self.models.score([path], question, answers))
        note = "Stopped; these are the answers as far as they came." if growth.stopped else ""
        yield shown | {"rows": rows, "progress": note}, idle


def look(path: str | None) -> Shown:
    """What the tab shows of a picture: the picture, or what is wrong with it."""
    if path is None:
        return {"hint": HINT}
    try:
        return {"picture": data_uri(small_copy(open_upload(path))), "hint": HINT}
    except RecordError as error:
        return {"notice": str(error)}


def ranked(texts: Sequence[str], scores: Sequence[float | str]) -> list[Shown]:
    """Rows of the ranking, the best first and marked; equal texts are one row, those without a score come last.

    Args:
        texts: whole texts of a model, or captions.
        scores: of each; a sentence where there is none.
    """
    times = Counter(texts)
    first: dict[str, float | str] = {}
    for text, score in zip(texts, scores, strict=True):
        first.setdefault(text, score)
    order = sorted(first.items(), key=lambda item: -item[1] if isinstance(item[1], float) else 1.0)
    return [
        _row(text, score=score, chosen=number == 0, count=times[text])
        if isinstance(score, float)
        else _row(text, note=score, count=times[text])
        for number, (text, score) in enumerate(order)
    ]


def _row(
    text: str, score: float | None = None, chosen: bool = False, note: str = "", count: int = 1, growing: bool = False
) -> Shown:
    reading = read_answer(text, growing)
    told = {"text": reading.answer, "thinking": reading.thinking}
    return told | {"score": score, "chosen": chosen, "note": note, "count": count}


def _wrong(path: str | None, shown: Shown, question: str, lines: Sequence[str] | None = None) -> str:
    """A sentence about what is missing or too much; "" if nothing is."""
    if path is None:
        return "Add a picture first."
    if notice := shown.get("notice"):
        return notice
    if lines is not None and not lines:
        return "Type at least one text."
    if lines is not None and len(lines) > MAX_TEXTS:
        return f"There are {len(lines)} texts; at most {MAX_TEXTS} are scored at once."
    if max(map(len, [question, *(lines or ())])) > MAX_CHARS:
        return f"A text has more than {MAX_CHARS:,} characters."
    return ""
