"""The client gives a score or raises the reason; it tries again where that helps, and only there."""

import asyncio
import base64
import json
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from src.errors import JobError, RecordError
from src.serving.client import Asked, AsyncRewardClient, Retry, RewardClient
from src.serving.pair_scorer import server_scorer

ROOT = Path(__file__).parents[2]
QUICK = Retry(tries=4, first_wait=0.001, longest_wait=0.002)
SCORES = {"scores": [1.5, 2.5]}
TWO = {"scores": [{"completion_id": "completion2", "score": 2.5}, {"completion_id": "completion1", "score": 1.5}]}


@pytest.fixture
def served(monkeypatch):
    """``served(*answers)``: the next answers of the server to come; returns the requests that it gets."""

    def serve(*answers):
        got, coming = [], iter(answers)

        def handle(request: httpx.Request) -> httpx.Response:
            got.append(request)
            answer = next(coming)
            answer = answer(request) if callable(answer) else answer
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, httpx.Response):
                return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
            return httpx.Response(200, json=answer)

        transport = httpx.MockTransport(handle)
        monkeypatch.setattr("src.serving.client.httpx.AsyncClient", partial(httpx.AsyncClient, transport=transport))
        return got

    return serve


def score(kind: str, *args, method: str = "score", patient: bool = False, **options):
    options["retry"] = Retry() if patient else QUICK
    if kind == "plain":
        with RewardClient(**options) as client:
            return getattr(client, method)(*args)

    async def run():
        async with AsyncRewardClient(**options) as client:
            return await getattr(client, method)(*args)

    return asyncio.run(run())


def failing(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"kind": "overloaded", "message": "too much"}, headers=headers)


both = pytest.mark.parametrize("kind", ["plain", "asynchronous"])


@both
def test_what_is_asked(served, kind, tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    content = picture.read_bytes()
    got = served(SCORES, TWO, TWO)
    images = [content, picture, {"bytes": content, "path": None}, Image.open(picture)]
    assert score(kind, images, "Who?", ["a", "b"], api_key="s3", url="http://box:81/v1/rewards") == [1.5, 2.5]
    assert score(kind, "Who?", "a", "b", picture, method="rewards") == (1.5, 2.5)
    assert score(kind, "Who?", "a", "b", method="rewards") == (1.5, 2.5)
    first, second, third = got
    encoded = base64.b64encode(content).decode()
    assert str(first.url) == "http://box:81/v1/score"
    assert first.headers["authorization"] == "Bearer s3"
    body = json.loads(first.content)
    assert Image.open(BytesIO(base64.b64decode(body["images"].pop()))).getpixel((0, 0)) == (255, 0, 0)
    assert body == {"images": [encoded] * 3, "question": "Who?", "texts": ["a", "b"]}
    body = {"model": "", "problem_description": "Who?", "completion1": "a", "completion2": "b"}
    assert json.loads(second.content) == {**body, "image_data": encoded}
    assert json.loads(third.content) == body


@both
@pytest.mark.parametrize(
    "failure", [httpx.ConnectError("refused"), httpx.ReadTimeout("late"), failing(503), failing(429), failing(500)]
)
def test_what_passes_is_tried_again(served, kind, failure):
    got = served(failure, failure, failure, SCORES)
    assert score(kind, [], "", ["a", "b"]) == [1.5, 2.5]
    assert len(got) == 4


@both
@pytest.mark.parametrize(
    ("failure", "reason"),
    [(httpx.ConnectError("refused"), "ConnectError: refused"), (failing(503), "503 overloaded: too much"),
     (httpx.Response(502, text="<h1>proxy</h1>"), "502 refused: <h1>proxy</h1>")],
)  # fmt: skip
def test_the_reason_is_raised_after_the_last_try(served, kind, failure, reason):
    got = served(*[failure] * 9)
    with pytest.raises(JobError, match=f"after 4 tries; the last: {reason}"):
        score(kind, [], "", ["a", "b"])
    assert len(got) == 4


@both
@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_pair_that_cannot_be_scored_is_not_tried_again(served, kind, status):
    got = served(httpx.Response(status, json={"kind": "empty_text", "message": "texts.1: empty"}))
    with pytest.raises(RecordError, match=r"texts\.1: empty") as caught:
        score(kind, [], "", ["a", ""])
    assert caught.value.kind == "empty_text"
    assert len(got) == 1


@both
@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_address_is_the_end(served, kind, status):
    got = served(failing(status))
    with pytest.raises(JobError, match=f"refuses: {status}"):
        score(kind, [], "", ["a", "b"])
    assert len(got) == 1


@both
@pytest.mark.parametrize(
    "answer",
    [httpx.Response(200, text="hello"), httpx.Response(200, json=[1.0, 2.0]), {}, {"scores": [1.0]},
     {"scores": [1.0, None]}, {"scores": [1.0, "2"]}, {"scores": [1.0, True]},
     httpx.Response(200, text='{"scores": [1.0, NaN]}')],
)  # fmt: skip
@pytest.mark.parametrize("method", ["score", "rewards"])
def test_an_answer_without_the_scores_is_no_reward(served, kind, answer, method):
    served(answer)
    with pytest.raises(JobError, match="scores"):
        score(kind, *([[], "", ["a", "b"]] if method == "score" else ["", "a", "b"]), method=method)


@both
def test_many_requests_in_their_order_with_errors_in_their_place(served, kind):
    def answer(request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["texts"]
        if texts == ["bad"]:
            return httpx.Response(422, json={"kind": "empty_text", "message": "no"})
        return httpx.Response(200, json={"scores": [float(text) for text in texts]})

    asked = [Asked([], "", [str(number), str(number + 0.5)]) for number in range(1, 40)]
    served(*[answer] * 99)
    scores = score(kind, asked, method="score_many", connections=5)
    assert scores == [[number, number + 0.5] for number in range(1, 40)]
    some = score(kind, [asked[0], Asked([], "", ["bad"]), asked[1]], "return", method="score_many")
    assert [some[0], some[2]] == [[1.0, 1.5], [2.0, 2.5]]
    assert isinstance(some[1], RecordError)
    with pytest.raises(RecordError):
        score(kind, [*asked, Asked([], "", ["bad"])], method="score_many")


@pytest.fixture
def silent(monkeypatch):
    """A server that takes requests and never answers; how many it has, and how many were given up."""
    counts = {"asked": 0, "left": 0}

    async def handle(_: httpx.Request) -> httpx.Response:
        counts["asked"] += 1
        try:
            await asyncio.sleep(60)
        finally:
            counts["left"] += 1
        raise AssertionError

    transport = httpx.MockTransport(handle)
    monkeypatch.setattr("src.serving.client.httpx.AsyncClient", partial(httpx.AsyncClient, transport=transport))
    return counts


@both
def test_a_call_ends_at_its_deadline_with_all_its_tries(silent, kind):
    began = time.monotonic()
    reason = r"within 0\.2 s, 3 tries; the last: ReadTimeout: no answer within 0\.0"
    with pytest.raises(JobError, match=reason):
        score(kind, [], "", ["a", "b"], timeout=0.09, deadline=0.2)
    assert time.monotonic() - began < 1
    assert silent["asked"] == silent["left"] > 2


@both
def test_no_wait_goes_beyond_the_deadline(served, kind):
    got = served(failing(503, **{"Retry-After": "7"}))
    with pytest.raises(JobError, match="within 5 s, 1 tries; the last: 503 overloaded: too much"):
        score(kind, [], "", ["a", "b"], deadline=5.0, patient=True)
    assert len(got) == 1


def test_a_keyboard_interrupt_ends_many_requests_at_once(silent):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main == threading.get_ident()

    def interrupt() -> None:
        while silent["asked"] < 8:
            time.sleep(0.005)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    began = time.monotonic()
    try:
        thread.start()
        with RewardClient(connections=8) as client, pytest.raises(KeyboardInterrupt):
            client.score_many([Asked([], "", ["a"])] * 20)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 2
    assert silent == {"asked": 8, "left": 8}


def test_waits_grow_differ_and_honour_the_server():
    retry = Retry(tries=9, first_wait=1.0, longest_wait=8.0)
    for failed, most in ((1, 1), (2, 2), (3, 4), (4, 8), (7, 8)):
        waits = [retry.wait(failed) for _ in range(200)]
        assert most / 2 <= min(waits) < max(waits) <= most
        assert max(waits) - min(waits) > most / 4
    assert all(5 <= retry.wait(1, retry_after=5) <= 6.25 for _ in range(100))
    assert retry.wait(1, retry_after=3600) <= 10


@both
def test_retry_after_is_waited_for(served, kind, monkeypatch):
    asked = []
    monkeypatch.setattr(Retry, "wait", lambda self, failed, after=0.0: asked.append((failed, after)) or 0.0)
    served(failing(503, **{"Retry-After": "7"}), failing(429, **{"Retry-After": "soon"}), SCORES)
    score(kind, [], "", ["a", "b"])
    assert asked == [(1, 7.0), (2, 0.0)]


def test_an_address_that_is_none_is_refused_at_once():
    with pytest.raises(JobError, match="http://"):
        RewardClient("localhost:8000")


def test_the_client_needs_none_of_the_models_packages():
    code = "import sys, src.serving.client; print({'torch', 'transformers', 'fastapi'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_items_with_one_question_about_the_same_images_share_a_request(served):
    red, copy, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "red", "blue"))
    items = [
        ("Who?", (red,), ["a", "same"]),
        ("Who?", (blue,), ["b", "same"]),
        ("Who?", (copy,), ["c", "same"]),
        ("What?", (red,), ["d", "same"]),
    ]
    values = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "same": 5.0}
    got = served(*[lambda request: {"scores": [values[t] for t in json.loads(request.content)["texts"]]}] * 3)
    with RewardClient(retry=QUICK) as client:
        assert server_scorer(client)(items) == [[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0]]
    assert sorted(json.loads(request.content)["texts"] for request in got) == [
        ["a", "same", "c"],
        ["b", "same"],
        ["d", "same"],
    ]


def test_what_a_shared_request_is_refused_for_is_the_error_of_its_item_alone(served):
    def answer(request):
        texts = json.loads(request.content)["texts"]
        return failing(422) if "bad" in texts else {"scores": [float(len(text)) for text in texts]}

    got = served(*[answer] * 3)
    with RewardClient(retry=QUICK) as client:
        first, second = server_scorer(client)([("", (), ["fine", "ref"]), ("", (), ["bad", "ref"])])
    assert first == [4.0, 3.0]
    assert isinstance(second, RecordError)
    assert len(got) == 3
