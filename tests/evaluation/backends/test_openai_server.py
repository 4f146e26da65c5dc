"""The OpenAI back end against a real local server that runs the embedded model: same texts, and every way to fail."""

import base64
import contextlib
import logging
import socket
import struct
import threading
import time
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, ImageCms

from src.dataset.images import open_image
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
    while behaviour.running:  # what nobody waits for any more
        time.sleep(0.01)
    vars(behaviour).update(vars(Behaviour()))
    return url, behaviour


def says(content: str | None, **more) -> dict:
    return {"choices": [{"message": {"role": "assistant", "content": content}, **more}]}


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
    assert not {"seed", "stop"} & set(behaviour.bodies[0])
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
        "model": NAME, "n": 2, "temperature": 0.85, "top_p": 0.95, "top_k": 40, "min_p": 0.0,
        "repetition_penalty": 1.0, "max_tokens": 9, "stop": ["a"], "skip_special_tokens": False,
    }  # fmt: skip


@pytest.mark.parametrize(("owner", "every"), [("vllm", 0), ("lmdeploy", 0), ("sglang", -1)])
def test_the_settings_of_the_checkpoint_are_overruled(server, images, owner, every):
    url, behaviour = server
    behaviour.owner = owner
    (texts,) = client(url).generate([Request("", [images[0]])], Sampling(n=4, temperature=1.0, seed=2))
    assert len(set(texts)) == 4, "with the checkpoint's top_k of 1 they are one"
    sent = behaviour.bodies[-1]
    neutral = {"top_k": every, "min_p": 0.0, "repetition_penalty": 1.0, "skip_special_tokens": True}
    assert {key: sent[key] for key in neutral} == neutral


@pytest.mark.parametrize("key", ["top_k", "repetition_penalty", "skip_special_tokens"])
def test_a_server_that_knows_openais_keys_alone(server, key):
    url, behaviour = server
    behaviour.refuses = key
    with pytest.raises(JobError, match=f"answers 400: .*{key} .*set the option own_keys_only=True"):
        client(url).generate([Request("hello")], SHORT)
    plain = client(url, own_keys_only=True)
    assert plain.generate([Request("hello")], SHORT)
    assert set(behaviour.bodies[-1]) == {"model", "messages", "n", "temperature", "top_p", "max_tokens"}
    for rule in (replace(SHORT, top_k=3), replace(SHORT, special_tokens=True)):
        with pytest.raises(JobError, match="own_keys_only leaves no way"):
            plain.generate([Request("hello")], rule)


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


def stored(picture: Image.Image, path: Path, **options) -> Path:
    picture.save(path, **options)
    return path


def deep_png(path: Path) -> Path:
    """Of 16 bits a channel, which Pillow cannot write."""
    rows = b"".join(b"\0" + bytes(range(90)) * 2 for _ in range(30))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 30, 30, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def test_images_look_to_the_server_as_they_look_here(server, tmp_path, images):
    """Files that any program shows alike go as they are, all others as the pixels of ``open_image``."""
    made, rgb = client(server[0]), images[1]
    clear, turned = rgb.copy(), Image.Exif()
    clear.putalpha(Image.linear_gradient("L").resize(rgb.size))
    turned[0x0112] = 6
    upright = Image.Exif()
    upright[0x0112] = 1
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    whole = [
        stored(rgb, tmp_path / "a.jpg"), stored(rgb, tmp_path / "a.png"), stored(rgb, tmp_path / "a.webp"),
        stored(rgb, tmp_path / "upright.jpg", exif=upright),
    ]  # fmt: skip
    redone = [
        stored(rgb, tmp_path / "turned.jpg", exif=turned), stored(rgb, tmp_path / "turned.png", exif=turned),
        stored(rgb, tmp_path / "turned.webp", exif=turned), stored(clear, tmp_path / "clear.png"),
        stored(clear, tmp_path / "clear.webp"), stored(rgb, tmp_path / "masked.png", transparency=(1, 2, 3)),
        stored(rgb.quantize(8), tmp_path / "palette.png"), stored(rgb.convert("L"), tmp_path / "grey.jpg"),
        stored(rgb.convert("CMYK"), tmp_path / "print.jpg"), stored(rgb, tmp_path / "profile.jpg", icc_profile=profile),
        stored(Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30)), tmp_path / "deep_grey.png"),
        deep_png(tmp_path / "deep.png"), stored(rgb, tmp_path / "a.tif"),
        stored(rgb, tmp_path / "two.webp", save_all=True, append_images=[images[0].resize(rgb.size)]), rgb,
    ]  # fmt: skip
    for source in [*whole, *redone]:
        head, _, data = made.open(source).partition(";base64,")
        content = base64.b64decode(data)
        if source in whole:
            assert content == source.read_bytes(), source
            continue
        assert head == "data:image/png"
        shown = Image.open(BytesIO(content))
        assert (shown.mode, shown.info, len(shown.getexif())) == ("RGB", {}, 0)
        assert shown.tobytes() == open_image(source).tobytes(), source


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
        "server_error", "server_error", "server_error", "server_error", "text_too_long", "ok"
    ]  # fmt: skip
    assert str(results[0].error) == f"row 0: {url} answers 500: out of memory"
    assert "no JSON" in str(results[1].error)
    assert "another form" in str(results[2].error)
    assert "without a text" in str(results[3].error)
    assert str(results[4].error) == f"row 4: {url} answers 400: prompt too long"
    assert len(behaviour.bodies) == 7


def test_a_slow_answer_is_a_time_out_of_its_request(server, caplog):
    url, behaviour = server
    made = client(url, timeout=0.4, retries=1)
    behaviour.failures = [says("there you are")] * 14
    slow = Sampling(max_new_tokens=2)
    behaviour.slow = lambda body: 0.7 if body["max_tokens"] == 2 else 0.1
    requests = [Request("a", sampling=slow), *[Request(f"b{k}") for k in range(12)]]
    result, *others = made.stream(requests, Sampling(max_new_tokens=1))
    assert result.error is not None
    assert result.error.kind == "timeout"
    assert f"{url} did not answer within 0.4 s" in str(result.error)
    assert all(other.texts for other in others)
    assert len(behaviour.bodies) == 2 + 12
    assert f"{url} did not answer within 0.4 s; try 2 of 2 in 0.01 s" in caplog.messages


def test_a_server_that_hangs_ends_the_job_at_the_deadline_by_name(server, caplog):
    url, behaviour = server
    made = client(url, timeout=0.15, deadline=0.4, retries=99, concurrency=4)
    behaviour.delay, behaviour.failures = 0.5, [says("too late")] * 99
    began = time.monotonic()
    with pytest.raises(JobError, match=f"{url} did not answer .*, nor any other request in 0.[45].* s: it hangs"):
        made.generate([Request(f"hello {k}") for k in range(40)], SHORT)
    assert time.monotonic() - began < 2
    assert 2 * 4 <= len(behaviour.bodies) < 20
    assert any("try 2 of 100" in text for text in caplog.messages)


def test_answers_that_trickle_in_for_ever_are_a_time_out():
    """Each piece comes in time, and the end never."""

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
            with contextlib.suppress(OSError):
                while True:
                    connection.sendall(b" ")
                    time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=[listener], daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with pytest.raises(JobError, match=f"{url} did not answer within 0.3 s"):
            client(url, timeout=0.3, retries=0)


def test_a_server_that_does_not_say_what_it_serves_in_time_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        began = time.monotonic()
        with pytest.raises(JobError, match=f"{url} did not answer within"):
            client(url, timeout=0.2, deadline=0.5, retries=50)
        assert time.monotonic() - began < 2


def test_no_text_is_an_error_and_a_cut_one_is_told(server, images):
    url, behaviour = server
    made = client(url, concurrency=1)
    behaviour.failures = [
        says(None, finish_reason="length"), says("half", finish_reason="content_filter"), says("all"),
        says("cut", finish_reason="length"), says(""),
    ]  # fmt: skip
    results = list(made.stream([Request("hello", name=f"row {k}") for k in range(5)], SHORT))
    assert [each.error.kind if each.error else each.finish for each in results] == [
        "no_text", "no_text", ["stop"], ["length"], ["stop"]
    ]  # fmt: skip
    assert str(results[0].error) == f"row 0: {url} gave no whole text; its finish_reason is 'length'"
    assert results[4].texts == [""]
    (whole,), (short,) = (list(made.stream([Request("", [images[0]])], Sampling(max_new_tokens=k))) for k in (64, 3))
    assert (whole.finish, short.finish) == (["stop"], ["length"])


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
