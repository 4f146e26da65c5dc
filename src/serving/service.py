"""The state of the reward server: a model that loads in the background, and what a request passes on its way to it."""

import asyncio
import hmac
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from typing import Generic

from fastapi import Request

from src.curation.scorer import Scorer
from src.errors import JobError
from src.serving.batcher import Batcher, Names, Room, Share
from src.serving.config import LimitsConfig, ServerConfig, is_address, is_loopback
from src.serving.metrics import Requests, value
from src.serving.schemas import RefusedError, Schema, parse

SMALL_BODY = 2**16  # bytes that are parsed faster than handed to another thread
FAILURES = 5  # requests in a row on which the model fails, as after an error of the GPU that does not go away
logger = logging.getLogger(__name__)


class Service:
    """Everything behind the routes.

    Args:
        load: makes the scorer; called once, in a thread.
    """

    def __init__(self, config: ServerConfig, load: Callable[[], Scorer]):
        self.config, self.load = config, load
        self.requests = Requests()
        self.room = Room(config.queue.max_bytes)
        self.batcher: Batcher | None = None
        self.failure: str | None = None
        self.warned = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load while the server answers that it is not ready yet; at the end, answer what was accepted."""
        loading = asyncio.create_task(self._start())
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            if self.batcher:
                await self.batcher.close()

    async def _start(self) -> None:
        loaded: Future[Scorer] = Future()
        loaded.set_running_or_notify_cancel()

        def load() -> None:
            try:
                loaded.set_result(self.load())
            except Exception as error:
                loaded.set_exception(error)

        # A server that is stopped while it loads does not wait for this thread.
        threading.Thread(target=load, name="load", daemon=True).start()
        try:
            self.batcher = Batcher(await asyncio.wrap_future(loaded), self.config.queue, self.config.limits)
        except Exception as error:  # whatever it is, the answer to every request says so
            self.failure = f"the model could not be loaded: {error}"
            logger.error(self.failure, exc_info=not isinstance(error, JobError))

    def check_health(self) -> None:
        """Raises RefusedError, 503, if there is no hope of scores: the process should be started again."""
        if self.failure:
            self.ready()
        if self.batcher and self.batcher.failures >= FAILURES:
            message = f"the model failed on each of the last {self.batcher.failures} requests"
            raise RefusedError(503, "scoring_failed", message)

    def ready(self) -> Batcher:
        """Raises RefusedError, 503, while there is no model."""
        if self.failure:
            raise RefusedError(503, "model_not_loaded", self.failure)
        if not self.batcher:
            raise RefusedError(503, "model_loading", "the model is being loaded", retry_after=2)
        return self.batcher

    @asynccontextmanager
    async def intake(self, request: Request, schema: type[Schema]) -> AsyncIterator["Intake[Schema]"]:
        """The parsed body of a request by one who may ask, once there is a model; it frees its memory when left.

        Raises:
            RefusedError: 401, 415 not said to be JSON, 503 no model or out of time, 422, or as :meth:`read`.
        """
        self.check_key(request.headers.get("authorization", ""))
        self._warn_of_strangers(request)
        # What a form on some web page may send unasked is refused: a page has to ask first for sending JSON.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RefusedError(415, "not_json", "the header Content-Type: application/json is missing")
        batcher = self.ready()
        share = Share(self.room)
        try:
            body = await self.read(request, share)
            small = len(body) <= SMALL_BODY
            async with asyncio.timeout(self.config.queue.request_seconds):
                asked = parse(schema, body) if small else await batcher.in_thread(partial(parse, schema, body))
                del body
                yield Intake(asked, self.config.limits, batcher, share)
        except TimeoutError:
            late = f"no score within {self.config.queue.request_seconds:g} seconds"
            raise RefusedError(503, "timed_out", late, batcher.patience()) from None
        finally:
            share.resize(0)

    def check_key(self, authorization: str) -> None:
        if self.config.api_key is None:
            return
        scheme, _, key = authorization.partition(" ")
        right = hmac.compare_digest(key.strip().encode(), self.config.api_key.encode())
        if scheme.lower() != "bearer" or not right:
            raise RefusedError(401, "unauthorized", "the header Authorization: Bearer KEY is missing or wrong")

    def _warn_of_strangers(self, request: Request) -> None:
        """Say once that others get scores without a key; under uvicorn only a request tells where it was reached."""
        host = (request.scope.get("server") or ("localhost",))[0]
        if self.config.api_key is None and not self.warned and is_address(host) and not is_loopback(host):
            self.warned = True
            logger.warning("no api_key: whoever reaches %s gets scores; set REWARD_SERVER_API_KEY", host)

    async def read(self, request: Request, share: Share) -> bytes:
        """The body, no byte more of it than the limit.

        Raises:
            RefusedError: 413 too long, 408 too slow, 503 no memory left.
        """
        limits = self.config.limits
        too_long = RefusedError(413, "body_too_large", f"the body is beyond the limit of {limits.max_body_bytes} bytes")
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > limits.max_body_bytes:
            raise too_long
        body = bytearray()
        try:
            async with asyncio.timeout(limits.body_seconds):
                more = True
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise RefusedError(400, "disconnected", "the client left before its request had arrived")
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    if len(body) + len(chunk) > limits.max_body_bytes:
                        raise too_long
                    share.take(len(chunk))
                    body += chunk
        except TimeoutError:
            late = f"the body did not arrive within {limits.body_seconds:g} seconds"
            raise RefusedError(408, "slow_body", late) from None
        return bytes(body)

    def metrics(self) -> Iterator[str]:
        yield from self.requests.lines()
        yield from value("scorers_ready", "gauge", "Whether there is a model.", int(self.batcher is not None))
        yield from value("scorers_held_bytes", "gauge", "Bodies and images of requests under way.", self.room.used)
        if not (batcher := self.batcher):
            return
        cache = batcher.cache
        yield from value("scorers_pending_pairs", "gauge", "Pairs accepted and not yet answered.", batcher.pending)
        yield from value("scorers_pairs_total", "counter", "Pairs scored.", batcher.pairs)
        yield from value("scorers_rows_total", "counter", "Distinct pairs that the model ran on.", batcher.rows)
        yield from value("scorers_batches_total", "counter", "Turns of the model.", batcher.batches)
        yield from value("scorers_model_seconds_total", "counter", "Time of these turns.", batcher.model_seconds)
        yield from value("scorers_image_hits_total", "counter", "Images that were there already.", cache.hits)
        yield from value("scorers_image_misses_total", "counter", "Images decoded.", cache.misses)
        yield from value("scorers_image_cache_bytes", "gauge", "Prepared pixels of images kept.", cache.used)


class Intake(Generic[Schema]):
    """A request that was let in."""

    def __init__(self, asked: Schema, limits: LimitsConfig, batcher: Batcher, share: Share):
        self.asked, self._limits, self._batcher, self._share = asked, limits, batcher, share

    async def score(self, images: Sequence[str], question: str, texts: Sequence[str], names: Names) -> list[float]:
        """One score per text.

        Raises:
            RefusedError: beyond a limit (422), or as :meth:`Batcher.score`.
        """
        limits = self._limits
        counts = (("images", len(images), limits.max_images), ("texts", len(texts), limits.max_texts))
        for what, count, limit in counts:
            if count > limit:
                raise RefusedError(422, f"too_many_{what}", f"{count} {what}; the limit is {limit} a request")
        for name, text in zip((names.question, *names.texts), (question, *texts), strict=True):
            if len(text) > limits.max_text_chars:
                size = f"{name} has {len(text)} characters; the limit is {limits.max_text_chars}"
                raise RefusedError(422, "text_too_long", size)
        return await self._batcher.score(images, question, texts, names, self._share)
