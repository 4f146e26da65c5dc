"""Ask a reward server, from plain or from asynchronous code, through its restarts and its busy times.

>>> from src.serving.client import RewardClient
>>> with RewardClient("http://127.0.0.1:8000") as client:
...     client.score(["harbour.jpg"], "How many ships?", ["Two.", "Seven."])
...     client.score_many([Asked(["a.jpg"], "", ["a pier"]), Asked(["b.jpg"], "", ["a field"])])

Connection errors, 429 and 5xx are tried again, with waits that grow, differ by chance, and are no shorter than the
server's Retry-After. After the last try, or at the deadline, the reason is raised: a reward that could not be had is
never a number. Ctrl+C ends a call at once, whatever it waits for. Needs httpx, numpy and Pillow, and none of the
model's packages.
"""

import asyncio
import base64
import math
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import httpx

from src.dataset.images import ImageSource, encoded_image
from src.errors import JobError, RecordError

T = TypeVar("T")


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


class AsyncRewardClient:
    """For asynchronous code, within one event loop."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout: float = 90.0,
        deadline: float = 600.0,
        connections: int = 64,
        retry: Retry | None = None,
    ):
        """
        Args:
            url: of the server; a path of a route at its end (``/v1/rewards``) is taken off.
            timeout: seconds for one try; above the server's own ``queue.request_seconds``, so that it can say why.
            deadline: seconds for a request with all its tries and waits, from its turn among ``connections`` on.
            connections: requests at a time.

        Raises:
            JobError: the URL is none of HTTP.
        """
        if not url.startswith(("http://", "https://")):
            raise JobError(f"the server's URL must begin with http:// or https://, not {url!r}")
        self.retry, self.timeout, self.deadline = retry or Retry(), timeout, deadline
        self.url = url.rstrip("/").removesuffix("/v1/rewards").removesuffix("/v1/score")
        self._turns = asyncio.Semaphore(connections)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0), pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            trust_env=False,  # no proxy between a trainer and its rewards
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def score(self, images: Sequence[ImageSource], question: str, texts: Sequence[str]) -> list[float]:
        """One score per text, each above 0.

        Raises:
            RecordError: an image or text cannot be used.
            JobError: the server does not answer; the message has the reason.
        """
        return _scores(await self._ask("/v1/score", Asked(images, question, texts).body), len(texts))

    async def rewards(
        self, problem: str, first: str, second: str, image: ImageSource | None = None
    ) -> tuple[float, float]:
        """Scores of two completions by the published route. Errors are those of :meth:`score`."""
        return _two(await self._ask("/v1/rewards", lambda: _published(problem, first, second, image)))

    @overload
    async def score_many(self, asked: Iterable[Asked]) -> list[list[float]]: ...
    @overload
    async def score_many(
        self, asked: Iterable[Asked], errors: Literal["return"]
    ) -> list[list[float] | RecordError | JobError]: ...
    async def score_many(self, asked: Iterable[Asked], errors: str = "raise") -> Any:
        """Many requests, ``connections`` at a time, answered in their order.

        Args:
            errors: ``raise`` the first, or ``return`` each in the place of its scores.
        """

        async def one(item: Asked) -> list[float] | RecordError | JobError:
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

    async def _ask(self, route: str, body: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        async with self._turns:  # no more bodies in memory than are under way
            return await self._post(route, await asyncio.to_thread(body))

    async def _post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        until, failed = time.monotonic() + self.deadline, 0
        while True:
            response: httpx.Response | httpx.TransportError
            seconds = max(0.0, min(self.timeout, until - time.monotonic()))
            try:
                async with asyncio.timeout(seconds):  # httpx counts each read anew
                    response = await self._http.post(route, json=body)
            except TimeoutError:
                response = httpx.ReadTimeout(f"no answer within {seconds:.3g} s")
            except httpx.TransportError as error:
                response = error
            failed += 1
            outcome = self._outcome(failed, until - time.monotonic(), response)
            if isinstance(outcome, dict):
                return outcome
            await asyncio.sleep(outcome)

    def _outcome(
        self, failed: int, left: float, response: httpx.Response | httpx.TransportError
    ) -> dict[str, Any] | float:
        """The answer, or the seconds to wait before the next try.

        Args:
            left: seconds until the deadline.

        Raises:
            RecordError: the server refuses this request (400, 413, 422), with the server's kind.
            JobError: it will not answer: a wrong key or route, or the last try failed.
        """
        if isinstance(response, httpx.TransportError):
            reason, after = f"{type(response).__name__}: {response}".rstrip(": "), 0.0
        elif response.status_code == 200:
            return _json_object(response)
        else:
            kind, message = _refusal(response)
            if response.status_code in (400, 413, 422):
                raise RecordError(kind, message)
            reason = f"{response.status_code} {kind}: {message}"
            if response.status_code not in (408, 429) and response.status_code < 500:
                raise JobError(f"{self.url} refuses: {reason}")
            said = response.headers.get("retry-after", "")
            after = float(said) if said.isdigit() else 0.0
        wait = self.retry.wait(failed, after)
        if failed >= self.retry.tries:
            raise JobError(f"no scores from {self.url} after {failed} tries; the last: {reason}")
        if wait >= left:
            raise JobError(f"no scores from {self.url} within {self.deadline:g} s, {failed} tries; the last: {reason}")
        return wait


class RewardClient:
    """For plain code; threads may share one. Arguments are those of :class:`AsyncRewardClient`, which does the work in
    a thread: so a call ends at its deadline or at Ctrl+C, not after whatever it waits for."""

    def __init__(self, *args: Any, **options: Any):
        self._client = AsyncRewardClient(*args, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="reward client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._thread.is_alive():
            self._result(self._client.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def score(self, images: Sequence[ImageSource], question: str, texts: Sequence[str]) -> list[float]:
        """As :meth:`AsyncRewardClient.score`."""
        return self._result(self._client.score(images, question, texts))

    def rewards(self, problem: str, first: str, second: str, image: ImageSource | None = None) -> tuple[float, float]:
        """As :meth:`AsyncRewardClient.rewards`."""
        return self._result(self._client.rewards(problem, first, second, image))

    @overload
    def score_many(self, asked: Iterable[Asked]) -> list[list[float]]: ...
    @overload
    def score_many(
        self, asked: Iterable[Asked], errors: Literal["return"]
    ) -> list[list[float] | RecordError | JobError]: ...
    def score_many(self, asked: Iterable[Asked], errors: Any = "raise") -> Any:
        """As :meth:`AsyncRewardClient.score_many`."""
        return self._result(self._client.score_many(asked, errors))

    def _result(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # no effect on what is done; an interrupted call leaves nothing running


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
