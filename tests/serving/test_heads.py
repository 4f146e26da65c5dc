"""Connections on which no whole request comes are closed, and meanwhile hold up nobody."""

import socket
import threading
import time
from functools import partial

import httpx
import pytest
import uvicorn

from python_script.serve_reward import uvicorn_config
from src.serving import reward_server
from src.serving.config import ServerConfig
from src.serving.heads import TimedHeads

HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def server(tiny_scorer, monkeypatch):
    """As ``serve_reward.py`` runs it, in a thread, and quick to lose patience."""
    monkeypatch.setattr(TimedHeads, "seconds", 0.6)
    monkeypatch.setattr(
        "python_script.serve_reward.create_app", partial(reward_server.create_app, load=lambda: tiny_scorer)
    )
    made = uvicorn.Server(uvicorn_config(ServerConfig(port=0, connections=80)))
    made.config.port, made.config.log_level = 0, "error"
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    while not made.started:
        time.sleep(0.005)
    yield made, made.servers[0].sockets[0].getsockname()[1]
    made.should_exit = True
    thread.join(10)


def closed(connection: socket.socket) -> bool:
    return connection.recv(100) == b""


def test_unfinished_heads_stall_nobody_and_are_not_waited_for(server):
    running, port = server
    began = time.monotonic()
    idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(60)]
    for number, connection in enumerate(idle):
        connection.sendall(HEAD[: number % len(HEAD)])
    before = threading.active_count()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        while not http.get("/ready").is_success:
            time.sleep(0.01)
        answers = 0
        while time.monotonic() < began + 0.4:
            assert http.post("/v1/score", json={"texts": ["two ships"]}).status_code == 200
            answers += 1
        assert answers >= 3
        assert threading.active_count() <= before + 3  # the model's, and the two that decode
        assert len(running.server_state.connections) == 61
        assert all(closed(connection) for connection in idle)
        assert 0.5 < time.monotonic() - began < 3
        assert http.post("/v1/score", json={"texts": ["a"]}).status_code == 200, "who asks is kept"
    for connection in idle:
        connection.close()


def test_a_second_head_has_its_time_too_and_a_long_one_is_refused(server):
    _, port = server
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.sendall(HEAD)
        began = time.monotonic()
        while connection.recv(1000):
            pass
        assert 0.4 < time.monotonic() - began < 3
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(HEAD + b"X: " + b"a" * 2**16)
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")


def test_beyond_so_many_connections_the_server_is_busy(server):
    _, port = server
    many = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(85)]
    time.sleep(0.05)
    assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 503
    for connection in many:
        connection.close()
