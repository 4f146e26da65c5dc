"""What is said, taken apart and put together again; pictures and their boxes; models behind one door."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from python_script import web_demo
from src.chat import prompt_messages, thinking_prompt
from src.dataset.scenes import make_scene, png_bytes
from src.errors import JobError, RecordError
from src.evaluation.backends import Generation, Request, Sampling
from src.serving.web.chat import Stops, read_sampling
from src.serving.web.conversation import MAX_IMAGES, Conversation, Reading, read_answer
from src.serving.web.models import Growth, Models
from src.serving.web.pictures import draw_boxes, example_picture, open_upload, small_copy
from src.serving.web.score import ranked

FULL = "<think>two piers</think>\n<answer>A harbour.</answer>"


@pytest.mark.parametrize(
    ("text", "thinking", "answer", "thought", "whole"),
    [
        ("A harbour.", "", "A harbour.", True, True),
        (FULL, "two piers", "A harbour.", True, True),
        ("<think>two piers", "two piers", "", False, False),
        ("<think>two</think>", "two", "", True, True),
        ("<think>two</think><answer>A har", "two", "A har", True, False),
        ("<think>two</think> A harbour.", "two", "A harbour.", True, True),
        ("  <think>a < b</think>x", "a < b", "x", True, True),
        ("", "", "", True, True),
    ],
)
def test_answers_are_taken_apart(text, thinking, answer, thought, whole):
    assert read_answer(text) == Reading(thinking, answer, thought, whole)


def test_no_tag_is_shown_while_an_answer_grows():
    told = [read_answer(FULL[:end], growing=True) for end in range(len(FULL) + 1)]
    for reading in told:
        assert "<" not in reading.thinking + reading.answer
        assert "two piers".startswith(reading.thinking)
        assert "A harbour.".startswith(reading.answer)
    assert told[-1] == Reading("two piers", "A harbour.")


@pytest.fixture
def scene(tmp_path) -> Path:
    path = tmp_path / "scene.png"
    path.write_bytes(png_bytes(make_scene(3, size=64).image))
    return path


def test_the_model_gets_every_image_in_its_turn_and_no_earlier_thoughts(scene):
    talk = Conversation()
    talk.ask("What is it?", [str(scene)])
    talk.turns[0].text = FULL
    talk.ask("Compare <image> with <image>.", [str(scene), str(scene)])
    request = talk.request(reasoning=True)
    system, first, said, second = prompt_messages(request.turns, request.sources)
    assert system["content"][0]["text"] == thinking_prompt()
    assert [part["type"] for part in first["content"]] == ["image", "text"]
    assert said["content"][0]["text"] == "A harbour."
    assert [part["type"] for part in second["content"]] == ["text", "image", "text", "image", "text"]
    assert talk.images_until(talk.turns[0]) == [str(scene)]
    assert len(talk.images_until(talk.turns[1])) == 3


def test_questions_that_cannot_be_asked_leave_a_sentence_and_no_turn(scene, tmp_path):
    talk = Conversation()
    assert talk.ask(" ", []) is None
    assert talk.notice == "Type a question or add a picture first."
    assert talk.ask("x" * 10_000, []) is None
    assert "10,000 characters" in talk.notice
    assert talk.ask("?", [str(scene)] * (MAX_IMAGES + 1)) is None
    assert f"at most {MAX_IMAGES} pictures" in talk.notice
    (tmp_path / "text.png").write_text("no picture")
    assert talk.ask("?", [str(tmp_path / "text.png")]) is None
    assert talk.notice.startswith("This picture cannot be used: text.png is not an image")
    assert str(tmp_path) not in talk.notice
    assert talk.turns == []
    assert talk.ask("?", [str(scene)])
    assert talk.notice == ""


def test_an_answer_grows_and_ends(scene):
    talk = Conversation()
    turn = talk.ask("Where?", [str(scene)])
    states = []
    for growth in (
        Growth(),
        Growth(["<think>a"], waiting=False),
        Growth(["<think>a"], waiting=False, done=True),
        Growth(["(1,2),(300,400)"], waiting=False, done=True, stopped=True),
        Growth(waiting=False, done=True, error="No answer: too long"),
        Growth([""], waiting=False, done=True),
    ):
        talk.grow(turn, growth)
        states.append((turn.state, turn.note))
    assert [state for state, _ in states] == ["waiting", "growing", "cut", "stopped", "failed", "done"]
    assert states[4][1] == "No answer: too long"
    assert turn.boxed.startswith("data:image/jpeg;base64,")
    assert talk.again().text == ""
    assert talk.turns[0].shown == turn.shown


def test_boxes_are_drawn_where_they_are_and_cut_at_the_edge():
    grey = Image.new("RGB", (200, 100), "gray")
    drawn = np.asarray(draw_boxes(grey, [(100, 200, 500, 800)]))
    inside = (slice(25, 75), slice(28, 92))
    assert (drawn[inside] == 128).all()
    changed = (drawn != 128).any(-1)
    ys, xs = np.nonzero(changed)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (20, 100, 20, 79)
    assert (np.asarray(grey) == 128).all()
    wild = draw_boxes(grey, [(-1e300, -5, 1e300, 99999), (0, 0, 0, 0), *[(1, 1, 9, 9)] * 5000])
    assert wild.size == grey.size


def test_small_copies_keep_their_shape():
    assert small_copy(Image.new("RGB", (4000, 1000))).size == (448, 112)
    assert small_copy(Image.new("RGB", (20, 10))).size == (60, 30)
    assert open_upload(example_picture()).size == (224, 224)


def test_equal_candidates_are_one_row_and_errors_come_last():
    rows = ranked(["b", "<think>x</think>a", "b", ""], [1.0, 3.0, 1.0, "No score: the text to be scored is empty"])
    assert [(row["text"], row["score"], row["count"], row["chosen"]) for row in rows] == [
        ("a", 3.0, 1, True),
        ("b", 1.0, 2, False),
        ("", None, 1, False),
    ]
    assert rows[0]["thinking"] == "x"
    assert rows[2]["note"].startswith("No score")


def test_sampling_controls_are_checked():
    assert read_sampling((0.7, 0.9, 5, 64, 3), n=2) == Sampling(
        n=2, temperature=0.7, top_p=0.9, top_k=5, max_new_tokens=64, seed=3
    )
    assert read_sampling((0, 1, None, 10**6, None)).max_new_tokens == 8192
    for controls in ((None, 1, 0, 8, None), (9, 1, 0, 8, None), (1, 1, 0, 0, None), ("x", 1, 0, 8, None)):
        with pytest.raises(JobError):
            read_sampling(controls)


class Slow:
    """A model that says a letter at each permission."""

    def __init__(self):
        self.may = threading.Semaphore(0)
        self.asked: list[str] = []

    def watch(self, request, sampling, seen):
        self.asked.append(request.turns)
        text = ""
        for letter in "abcdef":
            assert self.may.acquire(timeout=60)
            text += letter
            if seen([text]):
                break
        return Generation([text])


class Broken:
    def watch(self, request, sampling, seen):
        raise RuntimeError("out of memory")

    def stream(self, windows):
        raise RecordError("bad_record", "no")


def test_one_speaks_at_a_time_in_order_and_who_gives_up_waiting_is_not_asked():
    slow = Slow()
    models = Models(slow, None)
    first = models.answer(Request("first"), Sampling(), threading.Event())
    while not slow.asked:
        assert not next(first).done
    stop = threading.Event()
    second = models.answer(Request("second"), Sampling(), stop)
    assert next(second).waiting
    stop.set()
    *_, given_up = second
    assert given_up.stopped
    assert given_up.texts == []
    third = models.answer(Request("third"), Sampling(), threading.Event())
    assert next(third).waiting
    slow.may.release(1)
    first.close()  # the visitor leaves: the next letter is the last
    slow.may.release(100)
    *_, end = third
    assert end.texts == ["abcdef"]
    assert not end.stopped
    assert slow.asked == ["first", "third"]


def test_what_fails_is_a_sentence():
    models = Models(Broken(), Broken())
    *_, end = models.answer(Request("?"), Sampling(), threading.Event())
    assert end.error == "The model failed (RuntimeError); the log of the server says more."
    assert models.score([], "", ["a", "b"]) == ["no", "no"]


def test_a_visitor_has_one_answer_under_way():
    stops = Stops()
    first, other = stops.begin("a"), stops.begin("b")
    second = stops.begin("a")
    assert (first.is_set(), second.is_set(), other.is_set()) == (True, False, False)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--flash-attn2", "--cpu-only"], "--flash-attn2 needs a GPU, and --cpu-only forbids it"),
        (["--scores", "no/such"], "cannot read no/such/manifest.json"),
        (["-c", "no/such/model", "--scores", ""], "no/such/model"),
    ],
)
def test_the_program_says_what_is_wrong_before_it_starts(flags, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        web_demo.main(flags)
    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


def test_the_embedded_model_is_the_first_that_is_there():
    assert web_demo.embedded(("assets/nano/no_such", "assets/nano/base")) == "assets/nano/base"
    with pytest.raises(JobError, match="give one with -c"):
        web_demo.embedded(("assets/nano/no_such",))
