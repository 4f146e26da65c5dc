"""The tab in which one talks with the model about pictures."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from src.errors import JobError
from src.evaluation.backends import Sampling
from src.serving.web.conversation import Conversation, Turn, read_answer
from src.serving.web.models import Models
from src.serving.web.pictures import example_picture
from src.serving.web.view import event_data, view

EXAMPLE = "Describe the image."
QUEUE: dict[str, Any] = {"concurrency_id": "vlm", "concurrency_limit": 8}  # who see that they wait; others queue
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
Update = tuple[Any, ...]


class Stops:
    """What ends the answer of each visitor, by the session of the browser."""

    def __init__(self) -> None:
        self._events: dict[str | None, threading.Event] = {}

    def begin(self, session: str | None) -> threading.Event:
        """End what the visitor has under way and return the event that ends what comes now."""
        earlier, now = self._events.get(session), threading.Event()
        self._events[session] = now
        if earlier:
            earlier.set()
        return now

    def end_of(self, request: gr.Request) -> None:
        """End what the visitor has under way, if anything."""
        if event := self._events.pop(request.session_hash, None):
            event.set()


def sampling_controls(temperature: float, tokens: int) -> list[gr.components.Component]:
    """The controls of :func:`read_sampling`, in its order, folded away."""
    with gr.Accordion("Sampling", open=False), gr.Row():
        return [
            gr.Slider(0, 2, temperature, step=0.05, label="temperature", info="0: the likeliest words", min_width=150),
            gr.Slider(0.05, 1, 0.95, step=0.05, label="top p", min_width=150),
            gr.Number(0, label="top k", info="0: all", precision=0, minimum=0, maximum=1000, min_width=110),
            gr.Number(tokens, label="most tokens", precision=0, minimum=1, maximum=8192, min_width=110),
            gr.Number(None, label="seed", info="none: anew", precision=0, minimum=0, min_width=110),
        ]


def read_sampling(controls: Sequence[Any], n: int = 1) -> Sampling:
    """The sampling that the controls ask for. Raises JobError with a sentence if it is impossible."""
    temperature, top_p, top_k, tokens, seed = controls
    try:
        asked = Sampling(
            n=n,
            temperature=float(temperature),
            top_p=float(top_p),
            top_k=int(top_k or 0),
            max_new_tokens=min(8192, int(tokens)),
            seed=None if seed is None else int(seed),
        )
    except (TypeError, ValueError) as error:
        raise JobError(f"a sampling control holds no number: {error}") from error
    return asked


class ChatTab:
    """What the buttons of the tab do; visitors share it, and each brings a conversation.

    Args:
        reasoning: ask the model to think before it answers.
    """

    def __init__(self, models: Models, reasoning: bool, stops: Stops):
        self.models, self.reasoning, self.stops = models, reasoning, stops

    def build(self) -> None:
        """Lay the tab out inside the current page."""
        talk = gr.State(Conversation())
        with gr.Column(elem_classes="chat"):
            log = view("chat")
            entry = gr.MultimodalTextbox(
                placeholder="Ask about a picture …",
                file_count="multiple",
                file_types=["image"],
                sources=["upload"],
                show_label=False,
                max_lines=6,
                max_plain_text_length=100_000,
                elem_id="chat-entry",
            )
            with gr.Row(elem_classes="tools"):
                example = gr.Button("Made scene", size="sm", min_width=80)
                again = gr.Button("Regenerate", size="sm", min_width=80)
                clear = gr.Button("Clear", size="sm", min_width=80)
            controls = sampling_controls(0.0, 2048 if self.reasoning else 512)
        shown = [log, entry, again]
        entry.submit(self.ask, [talk, entry, *controls], shown, **QUIET, **QUEUE)
        again.click(self.ask_again, [talk, *controls], shown, **QUIET, **QUEUE)
        entry.stop(self.stops.end_of, None, None, queue=False, **QUIET)
        clear.click(self.clear, talk, [log, entry], queue=False, **QUIET)
        log.click(self.score, talk, log, concurrency_id="scorer", concurrency_limit=8, **QUIET)
        example.click(made_scene, None, entry, queue=False, **QUIET)

    def ask(
        self, request: gr.Request, talk: Conversation, entered: dict[str, Any] | None, *sampling: Any
    ) -> Iterator[Update]:
        """Add a question and stream its answer."""
        given = entered or {}
        if turn := talk.ask(given.get("text") or "", given.get("files") or []):
            yield from self._reply(request, talk, turn, sampling)
        else:
            yield talk.shown(), gr.skip(), gr.skip()

    def ask_again(self, request: gr.Request, talk: Conversation, *sampling: Any) -> Iterator[Update]:
        """Stream another answer to the last question."""
        if turn := talk.again():
            yield from self._reply(request, talk, turn, sampling)
        else:
            talk.notice = "There is no answer yet to make anew."
            yield talk.shown(), gr.skip(), gr.skip()

    def _reply(
        self, request: gr.Request, talk: Conversation, turn: Turn, sampling: tuple[Any, ...]
    ) -> Iterator[Update]:
        stop = self.stops.begin(request.session_hash)
        yield talk.shown(), gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True), _enabled(False)
        try:
            for growth in self.models.answer(talk.request(self.reasoning), read_sampling(sampling), stop):
                talk.grow(turn, growth)
                yield talk.shown(), gr.skip(), gr.skip()
        except JobError as error:
            turn.state, turn.note = "failed", f"{error}."
        yield talk.shown(), gr.MultimodalTextbox(submit_btn=True, stop_btn=False), _enabled(True)

    def clear(self, request: gr.Request, talk: Conversation) -> tuple[Any, None]:
        """Forget all turns and end what is under way."""
        self.stops.end_of(request)
        talk.turns.clear()
        talk.notice = ""
        return talk.shown(), None

    def score(self, talk: Conversation, event: gr.EventData) -> dict[str, Any]:
        """Score the answer whose button was pressed."""
        number = event_data(event).get("turn")
        if isinstance(number, int) and 0 <= number < len(talk.turns):
            turn = talk.turns[number]
            [turn.score] = self.models.score(talk.images_until(turn), turn.question, [read_answer(turn.text).answer])
        return talk.shown()


def made_scene() -> dict[str, Any]:
    """A question about a made scene, for who has no picture at hand."""
    return {"text": EXAMPLE, "files": [example_picture()]}


def _enabled(enabled: bool) -> Any:
    return gr.Button(interactive=enabled)
