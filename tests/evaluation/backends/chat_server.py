"""A small OpenAI-compatible server on the loopback interface: the embedded model, and whatever can go wrong."""

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, PlainTextResponse

from src.errors import RecordError
from src.evaluation.backends import Request, Sampling
from src.evaluation.backends.base import Backend

NAME = "nano"


@dataclass
class Behaviour:
    """What the server does besides answering, and what it saw.

    Attributes:
        failures: answered instead of the next requests, one after the other.
        delay: seconds before an answer.
        slow: more of them, by what is asked.
        most_choices: texts that it gives at a time.
        key: that it wants.
        lists_models: False answers 404 where models are listed.
        owner: of the model in that list.
        refuses: a key that it does not know.
    """

    failures: list[Any] = field(default_factory=list)
    delay: float = 0.0
    slow: Callable[[dict[str, Any]], float] = lambda body: 0.0
    most_choices: int = 99
    key: str = ""
    lists_models: bool = True
    owner: str = "vllm"
    refuses: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    running: int = 0
    most_running: int = 0


def app(backend: Backend, behaviour: Behaviour) -> FastAPI:
    made, lock = FastAPI(), threading.Lock()

    @made.middleware("http")
    async def check_key(request: HttpRequest, call_next):
        if behaviour.key and request.headers.get("authorization") != f"Bearer {behaviour.key}":
            return JSONResponse({"error": {"message": "wrong key"}}, 401)
        return await call_next(request)

    @made.get("/v1/models")
    def models():
        if not behaviour.lists_models:
            return JSONResponse({"detail": "Not Found"}, 404)
        return {"object": "list", "data": [{"id": NAME, "object": "model", "owned_by": behaviour.owner}]}

    @made.post("/v1/chat/completions")
    def complete(body: dict[str, Any]):
        with lock:
            behaviour.times.append(time.monotonic())
            behaviour.bodies.append(body)
            behaviour.running += 1
            behaviour.most_running = max(behaviour.most_running, behaviour.running)
            failure = behaviour.failures.pop(0) if behaviour.failures else None
        try:
            time.sleep(behaviour.delay + behaviour.slow(body))
            if behaviour.refuses in body:
                return fails(400, f"Unrecognized request argument supplied: {behaviour.refuses}")
            if failure is not None:
                return failure
            with lock:
                return answer(backend, body, behaviour.most_choices)
        finally:
            with lock:
                behaviour.running -= 1

    return made


def answer(backend: Backend, body: dict[str, Any], most: int) -> Any:
    if body["model"] != NAME:
        return JSONResponse({"error": {"message": f"no model {body['model']}"}}, 404)
    turns, images = [], []
    for message in body["messages"]:
        content = message["content"]
        said = content if isinstance(content, str) else ""
        for part in content if isinstance(content, list) else ():
            if part["type"] == "image_url":
                kind, _, data = part["image_url"]["url"].partition(";base64,")
                assert kind in {"data:image/png", "data:image/jpeg", "data:image/webp"}
                images.append(base64.b64decode(data))
                said += "<image>"
            else:
                said += part["text"]
        turns.append({"role": message["role"], "content": said})
    sampling = Sampling(
        n=min(body["n"], most),
        temperature=body["temperature"],
        top_p=body["top_p"],
        top_k=max(0, body.get("top_k", 1)),  # left out, the checkpoint's counts, and Qwen2-VL's is 1
        max_new_tokens=body["max_tokens"],
        seed=body.get("seed"),
        stop=tuple(body.get("stop", ())),
    )
    try:
        (made,) = backend.stream([Request(turns, images)], sampling)
        if made.error:
            raise made.error
    except RecordError as error:
        return JSONResponse({"error": {"message": str(error), "code": 400}}, 400)
    choices = [
        {"index": k, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        for k, (text, finish) in enumerate(zip(made.texts, made.finish, strict=True))
    ]
    return {"object": "chat.completion", "model": NAME, "choices": choices}


@contextmanager
def serving(backend: Backend) -> Iterator[tuple[str, Behaviour]]:
    """The address of a running server (up to ``/v1``), and its behaviour, which may be changed while it runs."""
    behaviour = Behaviour()
    config = uvicorn.Config(app(backend, behaviour), host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started and time.monotonic() < until:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1", behaviour
    finally:
        server.should_exit = True
        thread.join(10)


def fails(status: int, message: str = "busy", **headers: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status, headers=headers)


def nonsense() -> PlainTextResponse:
    return PlainTextResponse("<html>not what was asked for</html>")
