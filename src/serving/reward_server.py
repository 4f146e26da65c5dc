"""The score of a model as a reward, over HTTP: ``POST /v1/rewards`` as published, ``POST /v1/score`` for many texts.

    uvicorn reward_server:app --host 127.0.0.1 --port 8000     # in customVeRL/examples/reward_function

Images come as base64 in the request; a URL or a path is no image. Every answer other than scores is JSON with ``kind``
and ``message`` (:class:`src.serving.schemas.Refusal`). A score that could not be computed is an error, never 0.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from src.config import exit_on_job_error
from src.curation.scorer import Scorer
from src.serving.batcher import Names
from src.serving.config import ServerConfig, config_from_environment
from src.serving.docs import docs_page
from src.serving.schemas import (
    CompletionScore,
    Refusal,
    RefusedError,
    RewardRequest,
    RewardResponse,
    ScoreRequest,
    ScoreResponse,
    body_of,
)
from src.serving.service import Service

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "An image cannot be used."},
    401: {"model": Refusal, "description": "The key is missing or wrong."},
    408: {"model": Refusal, "description": "The body came too slowly."},
    413: {"model": Refusal, "description": "The body is too large."},
    415: {"model": Refusal, "description": "The body is not said to be JSON."},
    422: {"model": Refusal, "description": "The request or a text of it cannot be used, or its score is no number."},
    429: {"model": Refusal, "description": "The queue is full; see Retry-After."},
    500: {"model": Refusal, "description": "The model failed."},
    503: {"model": Refusal, "description": "No model yet, no memory, or no answer in time; see Retry-After."},
}


def create_app(config: ServerConfig | None = None, load: Callable[[], Scorer] | None = None) -> FastAPI:
    """The server as an ASGI application.

    Args:
        config: None: from the environment, see :func:`src.serving.config.config_from_environment`; a wrong value
            ends the process with one sentence.
        load: makes the scorer, instead of ``config.model``.
    """
    if config is None:
        with exit_on_job_error():
            config = config_from_environment()
    options = asdict(config.model)
    service = Service(config, load or (lambda: Scorer.from_pretrained(**options)))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="ScoreRS reward server",
        description=__doc__ or "",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Timed, requests=service.requests)
    app.add_exception_handler(RefusedError, refuse)
    app.add_exception_handler(404, refuse)
    app.add_exception_handler(405, refuse)
    app.add_exception_handler(Exception, refuse)

    @app.post("/v1/rewards", responses=REFUSALS, openapi_extra=body_of(RewardRequest))
    async def rewards(request: Request) -> RewardResponse:
        """Score two completions of one problem, which may show an image."""
        async with service.intake(request, RewardRequest) as intake:
            asked = intake.asked
            images = [asked.image_data] if asked.image_data else []
            texts = {"completion1": asked.completion1, "completion2": asked.completion2}
            names = Names(["image_data"][: len(images)], "problem_description", list(texts))
            scores = await intake.score(images, asked.problem_description, list(texts.values()), names)
        scored = [CompletionScore(completion_id=name, score=score) for name, score in zip(texts, scores, strict=True)]
        return RewardResponse(model=asked.model, scores=scored)

    @app.post("/v1/score", responses=REFUSALS, openapi_extra=body_of(ScoreRequest))
    async def score(request: Request) -> ScoreResponse:
        """Score any number of texts about the same images."""
        async with service.intake(request, ScoreRequest) as intake:
            asked = intake.asked
            images = [f"images.{number}" for number in range(len(asked.images))]
            names = Names(images, "question", [f"texts.{number}" for number in range(len(asked.texts))])
            return ScoreResponse(scores=await intake.score(asked.images, asked.question, asked.texts, names))

    @app.get("/health", responses={503: {"model": Refusal}})
    async def health() -> dict[str, str]:
        """Whether the process is sound: it has a model, or will have one."""
        service.check_health()
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"model": Refusal}})
    async def ready() -> dict[str, str]:
        """Whether scores can be had now."""
        service.ready()
        return {"status": "ready", "model": config.model.path}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Counters for Prometheus."""
        text = "\n".join([*service.metrics(), ""])
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))

    return app


async def refuse(_: Request, error: Exception) -> JSONResponse:
    """Whatever went wrong, as a :class:`Refusal`."""
    if status := getattr(error, "status_code", None):  # no such route, or not by this method
        phrase = HTTPStatus(status).phrase
        error = RefusedError(status, phrase.lower().replace(" ", "_"), f"{phrase}; /docs tells of the routes")
    elif not isinstance(error, RefusedError):
        error = RefusedError(500, "internal", f"the server failed: {type(error).__name__}")
    content = Refusal(kind=error.kind, message=error.message).model_dump()
    return JSONResponse(content, error.status, error.headers)


class Timed:
    """Counts every answer, with its route and the seconds it took."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], requests: Any):
        self.app, self.requests = app, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, started = time.monotonic(), False

        def count(status: int) -> None:
            self.requests.add(getattr(scope.get("route"), "path", "other"), status, time.monotonic() - began)

        async def counted(message: dict[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                count(message["status"])
            await send(message)

        try:
            return await self.app(scope, receive, counted)
        except Exception:
            if not started:  # it is answered further out
                count(500)
            raise
