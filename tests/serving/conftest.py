"""A server inside the test, around the tiny scorer; and requests for it."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from src.curation.scorer import Scorer
from src.serving.config import LimitsConfig, QueueConfig, ServerConfig
from src.serving.reward_server import create_app
from tests.conftest import LEGACY

IMAGES = {path.stem: path.read_bytes() for path in sorted((LEGACY / "images").glob("*.png"))}
BASE64 = {name: base64.b64encode(content).decode() for name, content in IMAGES.items()}


@asynccontextmanager
async def serving(
    scorer: Scorer, limits: LimitsConfig | None = None, queue: QueueConfig | None = None, api_key: str | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that has loaded the scorer; it is shut down at the end of the block."""
    config = ServerConfig(limits=limits or LimitsConfig(), queue=queue or QueueConfig(), api_key=api_key)
    app = create_app(config, load=lambda: scorer)
    async with started(app) as http:
        while not (await http.get("/ready")).is_success:
            await asyncio.sleep(0.001)
        yield http


@asynccontextmanager
async def started(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application within its life span."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    http = httpx.AsyncClient(transport=transport, base_url="http://test")
    async with http, app.router.lifespan_context(app):
        yield http


@pytest.fixture(scope="session")
def nano_scorer() -> Scorer:
    return Scorer.from_pretrained(device="cpu", workers=2)


def published(image: str | None, problem: str, first: str, second: str) -> dict:
    body = {"model": "any", "problem_description": problem, "completion1": first, "completion2": second}
    return body if image is None else {**body, "image_data": image}


def refused(response: httpx.Response) -> tuple[int, str]:
    """Status and kind of an answer without scores; it must be of the one form that these have."""
    content = response.json()
    assert set(content) == {"kind", "message"}, content
    assert len(content["message"]) > 5
    return response.status_code, content["kind"]
