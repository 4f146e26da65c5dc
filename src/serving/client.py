"""Ask a reward server, from plain or from asynchronous code, through its restarts and its busy times.

>>> from src.serving.client import RewardClient
>>> with RewardClient("http://127.0.0.1:8000") as client:
...     client.score(["harbour.jpg"], "How many ships?", ["Two.", "Seven."])
...     client.score_many([Asked(["a.jpg"], "", ["a pier"]), Asked(["b.jpg"], "", ["a field"])])

Connection errors, 429 and 5xx are tried again, with waits that grow, differ by chance, and are no shorter than the
server's Retry-After. After the last try the reason is raised: a reward that could not be had is never a number. Needs
httpx, numpy and Pillow, and none of the model's packages.
"""

import asyncio
import base64
import math
import random
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, overload

import httpx

from src.dataset.images import ImageSource, encoded_image
from src.errors import JobError, RecordError


@dataclass(frozen=True)
class Asked:
    """Texts about the same images, in one request.

    Attributes:
        images: paths, bytes, Pillow images or ``{bytes, path}``, read on this side.
        question: what the texts answer; empty for captions.
    """

    images: Sequence[ImageSource]
    question: str
    texts: Sequence[str]

    def body(self) -> dict[str, Any]:
        """Raises RecordError for an image that cannot be read; bytes go as they are."""
        return {"images": [as_base64(i) for i in self.images], "question": self.question, "texts": [*self.texts]}


@dataclass(frozen=True)
class Retry:
    """How often a request is tried, and how long to wait between.

    Attributes:
        tries: in all; the waits between 15 last from one and a half to three minutes, in which a large model loads.
        first_wait: seconds after the first failure; each wait is twice the last, up to ``longest_wait``, of which a
            random half to all is waited.
    """

    tries: int = 15
    first_wait: float = 0.25
    longest_wait: float = 20.0

    def wait(self, failed: int, retry_after: float = 0.0) -> float:
        """Seconds before the next try, after so many failed ones."""
        planned = min(self.longest_wait, self.first_wait * 2 ** (failed - 1))
        return max(planned * random.uniform(0.5, 1), min(retry_after, self.longest_wait) * random.uniform(1, 1.25))


class _Client:
    """What both clients share: everything but the waiting."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout: float = 90.0,
        connections: int = 64,
        retry: Retry | None = None,
    ):
        """
        Args:
            url: of the server; a path of a route at its end (``/v1/rewards``) is taken off.
            timeout: seconds for one try; above the server's own ``queue.request_seconds``, so that it can say why.
            connections: requests at a time.

        Raises:
            JobError: the URL is none of HTTP.
        """
        if not url.startswith(("http://", "https://")):
            raise JobError(f"the server's URL must begin with http:// or https://, not {url!r}")
        self.retry, self.connections = retry or Retry(), connections
        base = url.rstrip("/").removesuffix("/v1/rewards").removesuffix("/v1/score")
        self._options: dict[str, Any] = {
            "base_url": base,
            "timeout": httpx.Timeout(timeout, connect=min(timeout, 10.0), pool=None),
            "limits": httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
            "trust_env": False,  # no proxy between a trainer and its rewards
        }

    def _outcome(self, failed: int, response: httpx.Response | httpx.TransportError) -> dict[str, Any] | float:
        """The answer, or the seconds to wait before the next try.

        Raises:
            RecordError: the server refuses this request (400, 413, 422), with the server's kind.
            JobError: it will not answer: a wrong key or route, or the last try failed.
        """
        if isinstance(response, httpx.TransportError):
            reason, wait = f"{type(response).__name__}: {response}".rstrip(": "), 0.0
        elif response.status_code == 200:
            return _json_object(response)
        else:
            kind, message = _refusal(response)
            if response.status_code in (400, 413, 422):
                raise RecordError(kind, message)
            reason = f"{response.status_code} {kind}: {message}"
            if response.status_code not in (408, 429) and response.status_code < 500:
                raise JobError(f"{self._options['base_url']} refuses: {reason}")
            after = response.headers.get("retry-after", "")
            wait = float(after) if after.isdigit() else 0.0
        if failed >= self.retry.tries:
            raise JobError(f"no scores from {self._options['base_url']} after {failed} tries; the last: {reason}")
        return self.retry.wait(failed, wait)


class RewardClient(_Client):
    """For plain code; threads may share one. Arguments are those of :class:`_Client`."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._http = httpx.Client(**self._options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._http.close()

    def score(self, images: Sequence[ImageSource], question: str, texts: Sequence[str]) -> list[float]:
        """One score per text, each above 0.

        Raises:
            RecordError: an image or text cannot be used.
            JobError: the server does not answer; the message has the reason.
        """
        return _scores(self._post("/v1/score", Asked(images, question, texts).body()), len(texts))

    def rewards(self, problem: str, first: str, second: str, image: ImageSource | None = None) -> tuple[float, float]:
        """Scores of two completions by the published route. Errors are those of :meth:`score`."""
        return _two(self._post("/v1/rewards", _published(problem, first, second, image)))

    @overload
    def score_many(self, asked: Iterable[Asked]) -> list[list[float]]: ...
    @overload
    def score_many(
        self, asked: Iterable[Asked], errors: Literal["return"]
    ) -> list[list[float] | RecordError | JobError]: ...
    def score_many(self, asked: Iterable[Asked], errors: str = "raise") -> Any:
        """Many requests, ``connections`` at a time, answered in their order.

        Args:
            errors: ``raise`` the first, or ``return`` each in the place of its scores.
        """

        def one(item: Asked) -> list[float] | RecordError | JobError:
            try:
                return self.score(item.images, item.question, item.texts)
            except (RecordError, JobError) as error:
                if errors == "raise":
                    raise
                return error

        with ThreadPoolExecutor(self.connections, thread_name_prefix="reward") as pool:
            try:
                return list(pool.map(one, asked))
            finally:
                pool.shutdown(cancel_futures=True)

    def _post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        failed = 0
        while True:
            response: httpx.Response | httpx.TransportError
            try:
                response = self._http.post(route, json=body)
            except httpx.TransportError as error:
                response = error
            failed += 1
            outcome = self._outcome(failed, response)
            if isinstance(outcome, dict):
                return outcome
            time.sleep(outcome)


class AsyncRewardClient(_Client):
    """For asynchronous code, within one event loop. Arguments are those of :class:`_Client`."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._http = httpx.AsyncClient(**self._options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._http.aclose()

    async def score(self, images: Sequence[ImageSource], question: str, texts: Sequence[str]) -> list[float]:
        """As :meth:`RewardClient.score`."""
        body = await asyncio.to_thread(Asked(images, question, texts).body)
        return _scores(await self._post("/v1/score", body), len(texts))

    async def rewards(
        self, problem: str, first: str, second: str, image: ImageSource | None = None
    ) -> tuple[float, float]:
        """As :meth:`RewardClient.rewards`."""
        body = await asyncio.to_thread(_published, problem, first, second, image)
        return _two(await self._post("/v1/rewards", body))

    @overload
    async def score_many(self, asked: Iterable[Asked]) -> list[list[float]]: ...
    @overload
    async def score_many(
        self, asked: Iterable[Asked], errors: Literal["return"]
    ) -> list[list[float] | RecordError | JobError]: ...
    async def score_many(self, asked: Iterable[Asked], errors: str = "raise") -> Any:
        """As :meth:`RewardClient.score_many`."""
        gate = asyncio.Semaphore(self.connections)

        async def one(item: Asked) -> list[float] | RecordError | JobError:
            async with gate:
                try:
                    return await self.score(item.images, item.question, item.texts)
                except (RecordError, JobError) as error:
                    if errors == "raise":
                        raise
                    return error

        tasks = [asyncio.create_task(one(item)) for item in asked]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        failed = 0
        while True:
            response: httpx.Response | httpx.TransportError
            try:
                response = await self._http.post(route, json=body)
            except httpx.TransportError as error:
                response = error
            failed += 1
            outcome = self._outcome(failed, response)
            if isinstance(outcome, dict):
                return outcome
            await asyncio.sleep(outcome)


def as_base64(image: ImageSource) -> str:
    """The encoded image; bytes as they are, anything else as :func:`src.dataset.images.encoded_image` reads it."""
    content = image if isinstance(image, bytes) else encoded_image(image)[0]
    return base64.b64encode(content).decode("ascii")


def _published(problem: str, first: str, second: str, image: ImageSource | None) -> dict[str, Any]:
    body = {"model": "", "problem_description": problem, "completion1": first, "completion2": second}
    return body if image is None else {**body, "image_data": as_base64(image)}


def _json_object(response: httpx.Response) -> dict[str, Any]:
    try:
        content = response.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise JobError(f"{response.url} answers with something other than scores: {response.text[:200]!r}")
    return content


def _scores(answer: dict[str, Any], count: int) -> list[float]:
    scores = answer.get("scores")
    if not isinstance(scores, list) or len(scores) != count or not all(map(_is_score, scores)):
        raise JobError(f"the server's answer holds no {count} scores: {str(answer)[:200]}")
    return scores


def _two(answer: dict[str, Any]) -> tuple[float, float]:
    try:
        scored = {score["completion_id"]: score["score"] for score in answer["scores"]}
        first, second = _scores({"scores": [scored["completion1"], scored["completion2"]]}, 2)
    except (KeyError, TypeError):
        raise JobError(f"the server's answer holds no scores of two completions: {str(answer)[:200]}") from None
    return first, second


def _is_score(number: Any) -> bool:
    return isinstance(number, float | int) and not isinstance(number, bool) and math.isfinite(number)


def _refusal(response: httpx.Response) -> tuple[str, str]:
    """Kind and message of an answer without scores, whoever it is by."""
    try:
        content = response.json()
        return str(content["kind"]), str(content["message"])
    except (ValueError, KeyError, TypeError):
        return "refused", response.text[:200].strip() or response.reason_phrase
