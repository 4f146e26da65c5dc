"""The server as a process: started as the README says, starved, flooded, ended and killed."""

import asyncio
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from python_script import benchmark
from src.benchmark.serving import Server
from src.serving.client import Asked, AsyncRewardClient, RewardClient
from src.serving.reward_server import create_app
from tests.conftest import LEGACY
from tests.serving.conftest import BASE64, IMAGES

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "customVeRL" / "examples" / "reward_function"
VARIABLES = {
    "REWARD_SERVER_MODEL_PATH": str(LEGACY / "checkpoint"),
    "REWARD_SERVER_MODEL_DEVICE": "cpu",
    "REWARD_SERVER_LIMITS_BODY_SECONDS": "1.5",
    "REWARD_SERVER_LIMITS_MAX_BODY_BYTES": "2000000",
    "PYTHONPATH": str(ROOT),
}
JSON = "Content-Type: application/json"
BODY = {"images": [BASE64["tanks"]], "texts": ["two ships", "a field"]}


class Example(Server):
    """The example file, started in its own folder by the README's command."""

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "uvicorn",
            "reward_server:app",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        self.process = subprocess.Popen(command, env=self._environment, cwd=EXAMPLE)


@pytest.fixture(scope="module")
def server():
    with Example(variables=VARIABLES).wait() as started:
        yield started


def test_the_example_is_three_lines(server):
    lines = (EXAMPLE / "reward_server.py").read_text().splitlines()
    assert len([line for line in lines if line]) <= 3


def test_a_wrong_variable_ends_the_process_with_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("REWARD_SERVER_MODEL_PAHT", "x")
    with pytest.raises(SystemExit) as caught:
        create_app()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unknown variable REWARD_SERVER_MODEL_PAHT; known: REWARD_SERVER_CONFIG, ")


def test_both_clients_get_the_scores_of_the_scorer(server, tiny_scorer):
    """Defect 18: they were on another scale."""
    asked = [Asked([IMAGES[name]], "Who?", ["a", f"b {name}"]) for name in IMAGES] * 3
    right = [tiny_scorer.score_candidates(item.images, item.question, item.texts) for item in asked]
    with RewardClient(server.url, connections=8) as client:
        for scores, expected in zip(client.score_many(asked), right, strict=True):
            assert scores == pytest.approx(expected, abs=1e-5)
        pair = client.rewards("Who?", "a", "b tanks", IMAGES["tanks"])
    assert pair == pytest.approx(tiny_scorer.score_candidates([IMAGES["tanks"]], "Who?", ["a", "b tanks"]), abs=1e-5)

    async def run():
        async with AsyncRewardClient(server.url) as client:
            return await client.score_many(asked)

    for scores, expected in zip(asyncio.run(run()), right, strict=True):
        assert scores == pytest.approx(expected, abs=1e-5)


def head(server: Server, *lines: str) -> socket.socket:
    """A connection on which a request's head has been sent."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall("\r\n".join(["POST /v1/score HTTP/1.1", "Host: x", JSON, *lines, "", ""]).encode())
    return connection


def test_slow_bodies_stall_nobody_and_are_not_waited_for(server):
    began = time.monotonic()
    slow = [head(server, "Content-Length: 1000") for _ in range(100)]
    for connection in slow:
        connection.sendall(b"{")
    waits = []
    while time.monotonic() < began + 1.2:
        asked = time.monotonic()
        assert httpx.post(f"{server.url}/v1/score", json=BODY, trust_env=False).status_code == 200
        waits.append(time.monotonic() - asked)
    assert len(waits) >= 5
    for connection in slow:
        answer = b""
        while chunk := connection.recv(4096):  # the server closes
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"slow_body"' in answer
        connection.close()
    assert time.monotonic() - began < 6


def resident(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def test_huge_bodies_fill_no_memory_and_stall_nobody(server):
    httpx.post(f"{server.url}/v1/score", json=BODY, trust_env=False)
    before = resident(server)
    with head(server, "Content-Length: 10000000000") as declared:
        assert declared.recv(4096).startswith(b"HTTP/1.1 413 ")
    statuses = []

    def flood() -> None:
        chunks = (b"x" * 2**20 for _ in range(100))
        options = {"headers": dict([JSON.split(": ")]), "trust_env": False, "timeout": 30}
        statuses.append(httpx.post(f"{server.url}/v1/score", content=chunks, **options).status_code)

    floods = [threading.Thread(target=flood) for _ in range(3)]
    for thread in floods:
        thread.start()
    for _ in range(5):
        assert httpx.post(f"{server.url}/v1/score", json=BODY, trust_env=False).status_code == 200
    for thread in floods:
        thread.join()
    assert statuses == [413] * 3
    assert resident(server) - before < 60 * 2**20  # of 300 MiB that were sent


def test_a_broken_request_and_one_who_leaves_do_no_harm(server):
    with head(server, "Content-Length: 100") as gone:
        gone.sendall(b"{")
    with socket.create_connection(("127.0.0.1", server.port)) as broken:
        broken.sendall(b"\x00\x01 no HTTP\r\n\r\n")
        assert broken.recv(100).startswith(b"HTTP/1.1 400")
    assert httpx.post(f"{server.url}/v1/score", json=BODY, trust_env=False).status_code == 200
    assert 'status="500"' not in httpx.get(f"{server.url}/metrics", trust_env=False).text


def test_a_request_to_stop_waits_for_what_was_accepted():
    """All requests are being sent or scored when it comes; each gets its scores, and then the process ends."""
    variables = {**VARIABLES, "REWARD_SERVER_QUEUE_WAIT_MS": "600"}
    with Server(variables=variables).wait() as server:
        answers: list[int] = []
        ask = lambda: answers.append(httpx.post(f"{server.url}/v1/score", json=BODY, trust_env=False).status_code)  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        while "scorers_pending_pairs 32" not in httpx.get(f"{server.url}/metrics", trust_env=False).text:
            time.sleep(0.01)
        assert answers == []
        assert server.stop() in (0, -15)
        for thread in threads:
            thread.join()
    assert answers == [200] * 16


def test_a_crash_and_a_restart_cost_no_reward(capsys):
    """The program itself refuses a reward that is wrong or missing."""
    benchmark.main(["restart", "--requests", "300", "--side", "56", "--model", str(LEGACY / "checkpoint")])
    printed = capsys.readouterr().out
    assert "300 requests, 64 at a time" in printed
    assert "0 wrong, 0 zero" in printed
    assert printed.splitlines()[-1] == "ratio 1.00"


def test_a_server_of_many_clients_is_faster_than_the_published_handler(capsys):
    """The program itself refuses scores that differ by more than 1e-4. Aimed at is 6; this is for a busy machine."""
    benchmark.main(["reward_server", "--requests", "20", "--side", "224"])
    printed = capsys.readouterr().out
    assert len(re.findall(r"requests/s +median +[\d.]+ s +p99 +[\d.]+ s", printed)) == 2
    assert float(re.fullmatch(r"ratio ([\d.]+)", printed.splitlines()[-1])[1]) >= 2
