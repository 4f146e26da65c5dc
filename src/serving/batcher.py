"""Requests of many clients, scored together: a bounded queue in front of one thread that owns the model.

A request is decoded and tokenised in a thread of its own turn; what is ready waits a few milliseconds for company. One
turn of the model takes as many requests as fit its token budget. Equal texts about equal images are scored once,
images are encoded once (:mod:`src.serving.image_cache`), and common beginnings run once (:mod:`src.curation.batching`).
Scores are those of :class:`src.curation.scorer.Scorer`, whatever the company.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch

from src.curation.batching import encode_images, score_rows
from src.curation.scorer import Scorer
from src.dataset.images import ImageLimits, image_key, image_size
from src.errors import RecordError
from src.serving.config import LimitsConfig, QueueConfig
from src.serving.image_cache import ImageCache, Shown
from src.serving.schemas import RefusedError, image_bytes

T = TypeVar("T")
DECODED = 12  # bytes a pixel while an image is decoded: Pillow's four, once more for its copy, and three of a tensor
PATCH = 4 * 3 * 2 * 14 * 14  # bytes of a patch of the prepared pixels
logger = logging.getLogger(__name__)


@dataclass
class Names:
    """What messages call the parts of a request."""

    images: Sequence[str]
    question: str
    texts: Sequence[str]


@dataclass
class Ticket:
    """One request, ready for the model.

    Attributes:
        rows: token ids of each text; ``image_tokens`` of them stand for the images, and are the same in all.
        fresh: bytes of images that nobody had shown before.
    """

    images: list[Shown]
    rows: list[list[int]]
    image_tokens: int
    fresh: int
    names: Names
    since: float = field(init=False)
    answer: asyncio.Future[list[float]] = field(init=False)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(shown.key for shown in self.images)

    def tokens(self, images: int) -> int:
        """Of all texts, with so many for the images."""
        return images + sum(len(row) - self.image_tokens for row in self.rows)


class Room:
    """Bytes of bodies and images that may be in memory for requests not yet answered."""

    def __init__(self, size: int):
        self.size, self.used = size, 0


class Share:
    """What one request holds of the room, to be given back with :meth:`resize`; of one event loop."""

    def __init__(self, room: Room):
        self.room, self.held = room, 0

    def take(self, size: int) -> None:
        """Raises RefusedError: 413 if the room is too small for this request alone, 503 if it is too full."""
        if self.held + size > self.room.size:
            raise RefusedError(413, "request_too_large", "its images take more memory than queue.max_bytes allows")
        if self.room.used + size > self.room.size:
            raise RefusedError(503, "overloaded", "the requests under way fill the server's memory", retry_after=1)
        self.resize(self.held + size)

    def resize(self, size: int) -> None:
        """Hold so much, which must be no more than was taken."""
        self.room.used += size - self.held
        self.held = size


@dataclass
class Sent:
    """An image of a request, before it is decoded.

    Attributes:
        decoding, prepared: bytes that it takes while it is decoded, and after; none if it is known already.
    """

    name: str
    key: str
    content: bytes
    decoding: int = 0
    prepared: int = 0


class Batcher:
    """Scores of requests; all methods belong to one event loop.

    Attributes:
        pending: pairs accepted and not yet answered.
        failures: requests in a row on which the model failed.
    """

    def __init__(self, scorer: Scorer, queue: QueueConfig, limits: LimitsConfig):
        self.scorer, self.queue, self.limits = scorer, queue, limits
        images = ImageLimits(max_pixels=limits.max_pixels, max_bytes=limits.max_body_bytes)
        self._encoder = replace(scorer.encoder, limits=images)
        self.cache = ImageCache(queue.cache_bytes)
        self.pending = self.batches = self.pairs = self.rows = self.failures = 0
        self.model_seconds = 0.0
        self._waiting: deque[Ticket] = deque()
        self._arrived = asyncio.Event()
        self._decoders = ThreadPoolExecutor(scorer.workers, thread_name_prefix="decode")
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._loop = asyncio.create_task(self._run())

    async def score(
        self, images: Sequence[str], question: str, texts: Sequence[str], names: Names, share: Share
    ) -> list[float]:
        """One score per text.

        Args:
            images: in base64. They are measured by their headers, and decoded once there is memory for them.
            share: of the memory, for what the images take.

        Raises:
            RefusedError: 400 for an image, 422 for a text or for a score that is no number, 429 with a full queue,
                500 if the model fails, or as :meth:`Share.take`.
        """
        if self.pending + len(texts) > self.queue.max_pairs:
            busy = f"{self.pending} pairs wait already; the limit is {self.queue.max_pairs}"
            raise RefusedError(429, "overloaded", busy, self.patience())
        self.pending += len(texts)
        try:
            sent = await self.in_thread(partial(self._measure, images, names))
            before = share.held
            share.take(_most(sent))
            ticket = await self.in_thread(partial(self._prepare, sent, question, texts, names))
            share.resize(min(share.held, before + ticket.fresh))
            ticket.since = time.monotonic()
            ticket.answer = asyncio.get_running_loop().create_future()
            self._waiting.append(ticket)
            self._arrived.set()
            return await ticket.answer
        finally:
            self.pending -= len(texts)

    def patience(self) -> int:
        """Seconds after which the pairs now pending should be scored, 1 to 30."""
        return min(30, max(1, math.ceil(self.pending * self.model_seconds / max(1, self.pairs))))

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run what would hold up the event loop, in turn with the decoding of images."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    async def close(self) -> None:
        """Answer what was accepted, then end the threads."""
        while self.pending:
            await asyncio.sleep(0.01)
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        self._decoders.shutdown(cancel_futures=True)
        self._model.shutdown()

    def _measure(self, images: Sequence[str], names: Names) -> list[Sent]:
        """Raises RefusedError, 400, for what is no image or too large, as its header says."""
        sent: list[Sent] = []
        for name, text in zip(names.images, images, strict=True):
            try:
                content = image_bytes(text)
                image = Sent(name, image_key(content), content)
                if image.key not in self.cache and image.key not in {other.key for other in sent}:
                    width, height = image_size(content, None, self._encoder.limits)
                    patches = self._encoder.processor.image_processor.get_number_of_image_patches(height, width)
                    image.decoding, image.prepared = width * height * DECODED, patches * PATCH
                sent.append(image)
            except RecordError as error:
                raise RefusedError(400, error.kind, f"{name}: {error}") from None
        return sent

    def _prepare(self, sent: Sequence[Sent], question: str, texts: Sequence[str], names: Names) -> Ticket:
        encoder, shown, fresh = self._encoder, [], 0
        for image in sent:
            try:
                made, size = self.cache.get(image.key, partial(encoder.image, image.content))
            except RecordError as error:
                raise RefusedError(400, error.kind, f"{image.name}: {error}") from None
            shown.append(made)
            fresh += size
        encoded = [image.encoded for image in shown]
        prompts = []
        for name, text in zip(names.texts, texts, strict=True):
            try:
                prompts.append(encoder.prompt({"text": text, "question": question}, encoded))
            except RecordError as error:
                culprit = self._culprit(name, question, encoded, names)
                raise RefusedError(422, error.kind, f"{culprit}: {error}") from None
        rows = encoder.token_ids(prompts)
        for name, row in zip(names.texts, rows, strict=True):
            if isinstance(row, RecordError):
                raise RefusedError(422, row.kind, f"{name}: {row}")
        image_tokens = rows[0].count(self.scorer.model.config.image_token_id)  # type: ignore[union-attr]
        ticket = Ticket(shown, rows, image_tokens, fresh, names)  # type: ignore[arg-type]  # no errors are left
        if (tokens := ticket.tokens(image_tokens)) > self.limits.max_tokens:
            what = f"the texts have {tokens} tokens; the limit is {self.limits.max_tokens} a request"
            raise RefusedError(422, "too_many_tokens", what)
        return ticket

    def _culprit(self, name: str, question: str, encoded: Sequence, names: Names) -> str:
        """The question, if even the plainest text cannot answer it; else the text of this name."""
        try:
            self._encoder.prompt({"text": ".", "question": question}, encoded)
        except RecordError:
            return names.question
        return name

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._arrived.clear()
            if not self._waiting:
                await self._arrived.wait()
            await asyncio.sleep(max(0.0, self._waiting[0].since + self.queue.wait_ms / 1000 - time.monotonic()))
            batch = self._take_batch()
            if not batch:
                continue
            outcomes = await loop.run_in_executor(self._model, self._score, batch)
            for ticket, outcome in zip(batch, outcomes, strict=True):
                if ticket.answer.done():  # its client was told that it took too long
                    continue
                if isinstance(outcome, RefusedError):
                    ticket.answer.set_exception(outcome)
                else:
                    ticket.answer.set_result(outcome)

    def _take_batch(self) -> list[Ticket]:
        """The requests that waited longest, as many as fit the token budget, or one; same images count once."""
        batch: list[Ticket] = []
        seen: set[tuple[str, ...]] = set()
        tokens = 0
        while self._waiting:
            ticket = self._waiting[0]
            if ticket.answer.done():
                self._waiting.popleft()
                continue
            tokens += ticket.tokens(0 if ticket.keys in seen else ticket.image_tokens)
            if batch and tokens > self.scorer.token_budget:
                break
            seen.add(ticket.keys)
            batch.append(self._waiting.popleft())
        return batch

    def _score(self, batch: Sequence[Ticket]) -> list[list[float] | RefusedError]:
        """Scores of each request, or why there are none. One that breaks the model leaves the others whole."""
        try:
            scored = self._forward(batch)
        except Exception as error:
            failure = type(error).__name__
            if len(batch) == 1:
                logger.exception("the model failed")
        else:
            return self._told(batch, scored)
        # Out of the handler, whose traceback holds the memory of what failed.
        if len(batch) > 1:
            return [self._score([ticket])[0] for ticket in batch]
        self.failures += 1
        return [RefusedError(500, "scoring_failed", f"the model failed on {batch[0].names.texts[0]}: {failure}")]

    def _told(self, batch: Sequence[Ticket], scored: list[list[float]]) -> list[list[float] | RefusedError]:
        self.batches += 1
        self.failures = 0
        self.pairs += sum(len(ticket.rows) for ticket in batch)
        return [self._finite(ticket, scores) for ticket, scores in zip(batch, scored, strict=True)]

    def _forward(self, batch: Sequence[Ticket]) -> list[list[float]]:
        began, model = time.monotonic(), self.scorer.model
        images = {shown.key: shown for ticket in batch for shown in ticket.images}
        found: dict[tuple[tuple[str, ...], tuple[int, ...]], int] = {}
        places = []
        for ticket in batch:
            places.append([found.setdefault((ticket.keys, tuple(row)), len(found)) for row in ticket.rows])
        with torch.inference_mode():
            unseen = {key: shown.encoded for key, shown in images.items() if shown.features is None}
            for key, features in encode_images(model, unseen).items():
                images[key].keep_features(features)
            scores = score_rows(
                model,
                {key: shown.encoded for key, shown in images.items()},
                [(keys, list(row)) for keys, row in found],
                self._encoder.processor.tokenizer.pad_token_id,
                self.scorer.token_budget,
                {key: shown.features for key, shown in images.items() if shown.features is not None},
            )
        self.rows += len(found)
        self.model_seconds += time.monotonic() - began
        return [[scores[place] for place in own] for own in places]

    @staticmethod
    def _finite(ticket: Ticket, scores: list[float]) -> list[float] | RefusedError:
        for name, score in zip(ticket.names.texts, scores, strict=True):
            if not math.isfinite(score):
                return RefusedError(422, "not_finite", f"{name}: the model's score is {score}; try another dtype")
        return scores


def _most(sent: Sequence[Sent]) -> int:
    """Bytes that images take at most while they are decoded one after the other, each prepared from a copy."""
    working = max((image.decoding + image.prepared for image in sent), default=0)
    return working + sum(len(image.content) + image.prepared for image in sent)
