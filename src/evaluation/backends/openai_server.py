"""Generation by a server that speaks the OpenAI chat completions interface: vLLM, SGLang, LMDeploy and others.

Seeds: each text is asked for with a seed of its own; whether that makes it the same in any company is up to the server.
"""

import base64
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from src.chat import Message
from src.dataset.images import ImageSource, encoded_image
from src.errors import JobError, RecordError
from src.evaluation.backends.base import Answer, Backend, Options, Prompt

KEY = "OPENAI_API_KEY"
_FORMATS = ("JPEG", "PNG", "WEBP")  # what servers are sure to decode; others are sent as PNG
_MAY_PASS = {408, 409, 425, 429}  # and all from 500 on
_REFUSES_ALL = {401, 403, 404, 405}


@dataclass(frozen=True, kw_only=True)
class OpenAIOptions(Options):
    """Options of the back end ``openai``.

    Attributes:
        url: of the server, up to and without ``/chat/completions``.
        api_key: what the server wants as a key; None reads the environment variable ``OPENAI_API_KEY``. Never printed.
        concurrency: requests that the server has at a time.
        timeout: seconds that an answer may take.
        retries: how often a request is sent again after a failure that may pass (no connection, time-out, 429, 5xx).
        backoff: seconds before the first of these, doubled each time, 60 at most; a server's Retry-After counts too.
    """

    url: str = "http://127.0.0.1:8000/v1"
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 16
    timeout: float = 600.0
    retries: int = 4
    backoff: float = 1.0


class OpenAIBackend(Backend):
    """See the module."""

    options_type = OpenAIOptions
    options: OpenAIOptions

    def __init__(self, model: str | Path = "", options: OpenAIOptions | None = None):
        self.options = options = options or OpenAIOptions()
        self.url = options.url.rstrip("/")
        key = options.api_key or os.environ.get(KEY)
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(options.timeout, connect=min(30.0, options.timeout)),
            limits=httpx.Limits(max_connections=options.concurrency),
        )
        self._stopped = threading.Event()
        served = self._served()
        if not served and not model:
            raise JobError(f"{self.url} does not say what it serves: name the model")
        self.model = str(model) or served[0]
        if served and self.model not in served:
            raise JobError(f"{self.url} serves {', '.join(served)}, not {self.model}")

    def open(self, source: ImageSource) -> str:
        """The image as a data URL."""
        root = self.options.image_root
        content, kind = encoded_image(source, Path(root) if root is not None else None, self.options.limits, _FORMATS)
        return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"

    def answer(self, prompts: Sequence[Prompt], done: Callable[[int], object]) -> list[Answer]:
        """See the base class; ``concurrency`` requests are under way at a time.

        Raises:
            JobError: the server cannot be reached, or refuses everything.
        """
        self._stopped.clear()
        with ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="request") as pool:
            asked = [pool.submit(self._ask, prompt) for prompt in prompts]
            try:
                for future in as_completed(asked):
                    future.result()
                    done(1)
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        return [future.result() for future in asked]

    def _ask(self, prompt: Prompt) -> Answer:
        """The texts of one prompt; a server that gives one text at a time is asked again for the others."""
        texts: list[str] = []
        try:
            while len(texts) < prompt.sampling.draws:
                body = self.body(prompt, len(texts))
                choices = self._send("POST", "/chat/completions", body)["choices"]
                texts += [choice["message"]["content"] or "" for choice in choices][: body["n"]]
                if not choices:
                    raise RecordError("server_error", f"{self.url} gave an answer without a text")
        except (KeyError, TypeError) as error:
            return RecordError("server_error", f"{self.url} gave an answer of another form: {error!r}")
        except RecordError as error:
            return error
        return texts

    def body(self, prompt: Prompt, first: int) -> dict[str, Any]:
        """What is sent to ask for the texts from number ``first`` on."""
        sampling = prompt.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "messages": prompt.engine_messages(_part),
            "n": sampling.draws - first,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
        }
        if sampling.seed is not None:
            body["seed"] = prompt.seed(first)
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        # Not OpenAI's, but known to vLLM, SGLang and LMDeploy; sent only when asked for.
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if sampling.special_tokens:
            body["skip_special_tokens"] = False
        return body

    def _served(self) -> list[str]:
        try:
            return [model["id"] for model in self._send("GET", "/models")["data"]]
        except (RecordError, KeyError, TypeError):
            return []

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON of the answer.

        Raises:
            RecordError: ``refused`` (this request will not do), ``timeout``, ``server_error``.
            JobError: no connection, or the server refuses everything.
        """
        for attempt in range(self.options.retries + 1):
            try:
                return self._send_once(method, path, body)
            except _MayPassError as failure:
                wait = min(60.0, max(failure.wait, self.options.backoff * 2**attempt))
                if attempt == self.options.retries or self._stopped.wait(wait):
                    raise failure.error from failure.__cause__
        raise AssertionError("the loop returns or raises")

    def _send_once(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            answer = self._client.request(method, self.url + path, json=body)
        except httpx.ReadTimeout as error:
            message = f"{self.url} did not answer within {self.options.timeout:g} s"
            raise _MayPassError(RecordError("timeout", message)) from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise _MayPassError(JobError(f"cannot reach {self.url}: {error or type(error).__name__}")) from error
        if answer.is_success:
            try:
                return answer.json()
            except ValueError as error:
                raise RecordError("server_error", f"{self.url} gave an answer that is no JSON: {error}") from error
        failure = f"{self.url} answers {answer.status_code}: {_told(answer)}"
        if answer.status_code in _MAY_PASS or answer.status_code >= 500:
            after = answer.headers.get("retry-after", "")
            raise _MayPassError(RecordError("server_error", failure), float(after) if after.isdigit() else 0.0)
        # A server may have no list of models, but then it has to know the model by the name given.
        if answer.status_code in _REFUSES_ALL and not (path == "/models" and answer.status_code in {404, 405}):
            raise JobError(failure)
        raise RecordError("refused", failure)


class _MayPassError(Exception):
    """A failure after which it makes sense to send again, what it becomes if that does not help, and the least wait."""

    def __init__(self, error: Exception, wait: float = 0.0):
        super().__init__(str(error))
        self.error, self.wait = error, wait


def _part(url: str) -> Message:
    return {"type": "image_url", "image_url": {"url": url}}


def _told(answer: httpx.Response) -> str:
    """What the server says is wrong, in one line."""
    try:
        said = answer.json()
        said = said.get("error", said)
        said = said.get("message", said) if isinstance(said, dict) else said
    except (ValueError, AttributeError):
        said = answer.text
    return " ".join(str(said).split())[:300]
