"""The state of the reward server: a model that loads in the background, and what a request passes on its way to it."""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Generic

from fastapi import Request

from src.curation.scorer import Scorer
from src.dataset.images import ImageLimits
from src.errors import JobError
from src.serving.batcher import Batcher, Names, Room
from src.serving.config import ServerConfig
from src.serving.metrics import Requests, value
from src.serving.schemas import RefusedError, Schema, parse

SMALL_BODY = 2**16  # bytes that are parsed faster than handed to another thread
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
        with ThreadPoolExecutor(1, thread_name_prefix="load") as thread:
            try:
                scorer = await asyncio.get_running_loop().run_in_executor(thread, self.load)
                limits = self.config.limits
                images = ImageLimits(max_pixels=limits.max_pixels, max_bytes=limits.max_body_bytes)
                self.batcher = Batcher(scorer, self.config.queue, images)
            except Exception as error:  # whatever it is, the answer to every request says so
                self.failure = f"the model could not be loaded: {error}"
                logger.error(self.failure, exc_info=not isinstance(error, JobError))

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
            RefusedError: 401, 503, 413, 408, 422; see :meth:`read`.
        """
        self.check_key(request.headers.get("authorization", ""))
        batcher = self.ready()
        held = 0

        def take(size: int) -> None:
            nonlocal held
            if held + size > self.room.size:
                raise RefusedError(413, "request_too_large", "its images take more memory than queue.max_bytes allows")
            self.room.take(size)
            held += size

        try:
            body = await self.read(request, take)
            small = len(body) <= SMALL_BODY
            asked = parse(schema, body) if small else await batcher.in_thread(partial(parse, schema, body))
            del body
            yield Intake(asked, self, batcher, take)
        finally:
            self.room.used -= held

    def check_key(self, authorization: str) -> None:
        if self.config.api_key is None:
            return
        scheme, _, key = authorization.partition(" ")
        right = hmac.compare_digest(key.strip().encode(), self.config.api_key.encode())
        if scheme.lower() != "bearer" or not right:
            raise RefusedError(401, "unauthorized", "the header Authorization: Bearer KEY is missing or wrong")

    async def read(self, request: Request, take: Callable[[int], None]) -> bytes:
        """The body, no byte more of it than the limit.

        Raises:
            RefusedError: 413 too long, 408 too slow, 503 no memory left.
        """
        limits = self.config.limits
        too_long = RefusedError(413, "body_too_large", f"the body is beyond the limit of {limits.max_body_bytes} bytes")
        if (length := request.headers.get("content-length", "")).isdigit() and int(length) > limits.max_body_bytes:
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
                    take(len(chunk))
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

    def __init__(self, asked: Schema, service: Service, batcher: Batcher, take: Callable[[int], None]):
        self.asked, self._service, self._batcher, self._take = asked, service, batcher, take

    async def score(self, images: Sequence[str], question: str, texts: Sequence[str], names: Names) -> list[float]:
        """One score per text.

        Raises:
            RefusedError: beyond a limit (422), out of time (503), or as :meth:`Batcher.score`.
        """
        limits, seconds = self._service.config.limits, self._service.config.queue.request_seconds
        counts = (("images", len(images), limits.max_images), ("texts", len(texts), limits.max_texts))
        for what, count, limit in counts:
            if count > limit:
                raise RefusedError(422, f"too_many_{what}", f"{count} {what}; the limit is {limit} a request")
        for name, text in zip((names.question, *names.texts), (question, *texts), strict=True):
            if len(text) > limits.max_text_chars:
                size = f"{name} has {len(text)} characters; the limit is {limits.max_text_chars}"
                raise RefusedError(422, "text_too_long", size)
        try:
            async with asyncio.timeout(seconds):
                return await self._batcher.score(images, question, texts, names, self._take)
        except TimeoutError:
            late = f"no score within {seconds:g} seconds"
            raise RefusedError(503, "timed_out", late, self._batcher.patience()) from None
