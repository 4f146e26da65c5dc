"""The OpenAI back end against a real local server that runs the embedded model: same texts, and every way to fail."""

import logging
import socket
import time
from dataclasses import replace

import httpx
import pytest
from PIL import Image

from src.errors import JobError
from src.evaluation.backends import Request, Sampling, get_backend
from src.evaluation.backends.openai_server import OpenAIBackend, OpenAIOptions
from tests.evaluation.backends.chat_server import NAME, Behaviour, fails, nonsense, serving

SHORT = Sampling(max_new_tokens=16)
KEY = "sk-not-to-be-seen"


@pytest.fixture(scope="module")
def running(backend):
    with serving(backend) as server:
        yield server


@pytest.fixture
def server(running, monkeypatch) -> tuple[str, Behaviour]:
    """The server, well-behaved again."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    url, behaviour = running
    vars(behaviour).update(vars(Behaviour()))
    return url, behaviour


def client(url: str, **options) -> OpenAIBackend:
    made = get_backend("openai", NAME, url=url, **{"backoff": 0.01, "retries": 3, "progress": False, **options})
    assert isinstance(made, OpenAIBackend)
    return made


def test_texts_are_those_of_the_model_that_is_served(server, backend, images, tmp_path):
    url, behaviour = server
    images[1].save(tmp_path / "b.png")
    requests = [
        Request("", [images[0]]),
        Request("hello there what"),
        Request("first <image>\nthen <image> and say", [images[2], tmp_path / "b.png"]),
        Request([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}], [images[3]]),
    ]
    assert client(url + "/").generate(requests, SHORT) == backend.generate(requests, SHORT)
    assert len(behaviour.bodies) == 4
    assert not {"seed", "stop", "top_k", "skip_special_tokens"} & set(behaviour.bodies[0])
    assert get_backend("openai", "", url=url, progress=False).model == NAME


def test_all_that_sampling_says_is_sent(server, images):
    url, behaviour = server
    rule = Sampling(
        n=2, temperature=0.85, top_p=0.95, top_k=40, max_new_tokens=9, seed=5, stop=("a",), special_tokens=True
    )
    client(url).generate([Request("q", [images[0]])], rule)
    body = {key: value for key, value in behaviour.bodies[0].items() if key != "messages"}
    assert isinstance(body.pop("seed"), int)
    assert body == {
        "model": NAME, "n": 2, "temperature": 0.85, "top_p": 0.95, "top_k": 40, "max_tokens": 9, "stop": ["a"],
        "skip_special_tokens": False,
    }  # fmt: skip


@pytest.mark.parametrize("most", [99, 2, 1])
def test_n_texts_also_from_servers_that_give_fewer_at_a_time(server, images, most):
    url, behaviour = server
    behaviour.most_choices = most
    rule = Sampling(n=4, temperature=1.0, seed=2, max_new_tokens=12)
    (texts,) = client(url).generate([Request("", [images[0]])], rule)
    assert len(set(texts)) == 4
    assert [body["n"] for body in behaviour.bodies] == {99: [4], 2: [4, 2], 1: [4, 3, 2, 1]}[most]
    assert len({body["seed"] for body in behaviour.bodies}) == len(behaviour.bodies)
    greedy = client(url).generate([Request("", [images[0]])], replace(SHORT, n=3))
    assert greedy[0] == greedy[0][:1] * 3
    assert behaviour.bodies[-1]["n"] == 1


def test_photographs_are_sent_as_they_are_and_others_as_png(server, tmp_path, images):
    made = client(server[0])
    images[1].save(tmp_path / "a.jpg")
    images[1].save(tmp_path / "a.tif")
    assert made.open(tmp_path / "a.jpg").startswith("data:image/jpeg;base64,/9j/")
    assert made.open(tmp_path / "a.tif").startswith("data:image/png;base64,iVBOR")
    assert made.open(Image.new("L", (30, 30))).startswith("data:image/png;base64,iVBOR")


def test_failures_that_pass_are_overcome_with_growing_waits(server):
    url, behaviour = server
    made = client(url, backoff=0.1)
    behaviour.failures = [fails(500), fails(503), fails(429)]
    assert len(made.generate([Request("hello")], SHORT)[0]) == 1
    waits = [b - a for a, b in zip(behaviour.times, behaviour.times[1:], strict=False)]
    assert len(waits) == 3
    assert waits[0] >= 0.1
    assert waits[1] >= 0.2
    assert waits[2] >= 0.4
    behaviour.failures = [fails(429, **{"retry-after": "1"})]
    began = time.monotonic()
    made.generate([Request("hello")], SHORT)
    assert time.monotonic() - began >= 1


def test_failures_that_stay_are_errors_of_their_requests(server):
    url, behaviour = server
    made = client(url, retries=1, concurrency=1)
    behaviour.failures = [
        fails(500, "out of memory"), fails(500, "out of memory"), nonsense(), {"object": "other"}, {"choices": []},
        fails(400, "prompt too long"),
    ]  # fmt: skip
    results = list(made.stream([Request("hello", name=f"row {k}") for k in range(6)], SHORT))
    assert [each.error.kind if each.error else "ok" for each in results] == [
        "server_error", "server_error", "server_error", "server_error", "refused", "ok"
    ]  # fmt: skip
    assert str(results[0].error) == f"row 0: {url} answers 500: out of memory"
    assert "no JSON" in str(results[1].error)
    assert "another form" in str(results[2].error)
    assert "without a text" in str(results[3].error)
    assert str(results[4].error) == f"row 4: {url} answers 400: prompt too long"
    assert len(behaviour.bodies) == 7


def test_a_slow_answer_is_a_time_out_of_its_request(server):
    url, behaviour = server
    made = client(url, timeout=0.4, retries=1)
    behaviour.delay = 1.0
    (result,) = made.stream([Request("hello")], SHORT)
    assert result.error is not None
    assert result.error.kind == "timeout"
    assert f"{url} did not answer within 0.4 s" in str(result.error)
    assert len(behaviour.bodies) == 2
    time.sleep(1.2)


def test_a_dead_server_stops_the_job_by_name(server, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(JobError, match=f"cannot reach {dead}"):
            client(dead)
    made = client(server[0])
    monkeypatch.setattr(made, "url", dead)
    began = time.monotonic()
    with pytest.raises(JobError, match=f"cannot reach {dead}"):
        made.generate([Request(f"hello {k}") for k in range(50)], SHORT)
    assert time.monotonic() - began < 5


def test_an_unknown_model_is_told_before_anything_is_sent(server):
    url, behaviour = server
    with pytest.raises(JobError, match=f"{url} serves {NAME}, not other"):
        get_backend("openai", "other", url=url)
    behaviour.lists_models = False
    with pytest.raises(JobError, match="name the model"):
        get_backend("openai", "", url=url)
    unlisted = get_backend("openai", "other", url=url, progress=False)
    with pytest.raises(JobError, match="answers 404: no model other"):
        unlisted.generate([Request("hello")], SHORT)


def test_the_key_opens_and_is_never_shown(server, monkeypatch, capsys, caplog):
    url, behaviour = server
    behaviour.key = KEY
    caplog.set_level(logging.DEBUG)
    with pytest.raises(JobError, match="answers 401: wrong key"):
        client(url)
    with pytest.raises(JobError) as caught:
        client(url, api_key=KEY + "x")
    assert KEY not in str(caught.value)
    assert client(url, api_key=KEY).generate([Request("hello")], SHORT)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = client(url, progress=True)
    assert made.generate([Request("hello")], SHORT)
    shown = capsys.readouterr()
    said = repr(OpenAIOptions(api_key=KEY)) + repr(made) + repr(vars(made)) + shown.out + shown.err + caplog.text
    assert KEY not in said


def test_so_many_requests_at_a_time_and_texts_in_order(server, backend):
    url, behaviour = server
    behaviour.delay = 0.05
    requests = [Request(f"number {k}") for k in range(12)]
    texts = client(url, concurrency=3, window=6).generate(requests, SHORT)
    assert texts == backend.generate(requests, SHORT)
    assert behaviour.most_running == 3


def test_an_address_that_is_none_is_refused():
    with pytest.raises(JobError, match="cannot reach"):
        OpenAIBackend(NAME, OpenAIOptions(url="not an address", retries=0))
    assert issubclass(httpx.UnsupportedProtocol, httpx.TransportError)
