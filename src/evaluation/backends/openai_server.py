"""Generation by a server that speaks the OpenAI chat completions interface: vLLM, SGLang, LMDeploy and others.

Seeds: each text is asked for with a seed of its own; whether that makes it the same in any company is up to the server.
A server that knows OpenAI's own keys alone, such as OpenAI's, wants the option ``own_keys_only``: the others are told
to take no account of the checkpoint's sampling settings (with Qwen2-VL's they take the likeliest token each time).
"""

import base64
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from src.chat import Message
from src.dataset.images import ImageSource, encoded_image
from src.errors import JobError, RecordError
from src.evaluation.backends.base import Answer, Backend, Options, Prompt, Text
from src.evaluation.backends.refusals import refusal

KEY = "OPENAI_API_KEY"
_FORMATS = ("JPEG", "PNG", "WEBP")  # what servers are sure to decode; others are sent as PNG
_MAY_PASS = {408, 409, 425, 429}  # and all from 500 on
_REFUSES_ALL = {401, 403, 404, 405}
_EXTENSIONS = ("top_k", "min_p", "repetition_penalty", "skip_special_tokens")  # keys of vLLM, SGLang and LMDeploy
_BROKEN = {"abort", "content_filter", "error", "function_call", "tool_calls"}  # ends of what is no whole text
_LISTING = 60.0  # seconds, at most, in which a server has to say what it serves
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OpenAIOptions(Options):
    """Options of the back end ``openai``.

    Attributes:
        url: of the server, up to and without ``/chat/completions``.
        api_key: what the server wants as a key; None reads the environment variable ``OPENAI_API_KEY``. Never printed.
        concurrency: requests that the server has at a time.
        timeout: seconds that an answer may take.
        deadline: seconds for a request with all that follow. If the server has answered no request at all meanwhile,
            the job ends.
        retries: how often a request is sent again after a failure that may pass (no connection, time-out, 429, 5xx).
        backoff: seconds before the first of these, doubled each time, 60 at most; a server's Retry-After counts too.
        own_keys_only: send no keys but OpenAI's own. The server must take no sampling settings from the checkpoint
            then (``vllm serve --generation-config vllm``), or have none, as OpenAI's.
    """

    url: str = "http://127.0.0.1:8000/v1"
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 16
    timeout: float = 600.0
    deadline: float = 1800.0
    retries: int = 4
    backoff: float = 1.0
    own_keys_only: bool = False


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
        self._answered = 0.0  # when it last answered a request
        self._all_tokens = 0  # what it calls a top_k of all tokens
        served = self._served()
        if not served and not model:
            raise JobError(f"{self.url} does not say what it serves: name the model")
        self.model = str(model) or served[0]
        if served and self.model not in served:
            raise JobError(f"{self.url} serves {', '.join(served)}, not {self.model}")

    def open(self, source: ImageSource) -> str:
        """The image as a data URL, which shows any server what :func:`src.dataset.images.open_image` shows."""
        root = self.options.image_root
        root = Path(root) if root is not None else None
        content, kind = encoded_image(source, root, self.options.limits, _FORMATS, plain=True)
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
        texts: list[Text] = []
        try:
            while len(texts) < prompt.sampling.draws:
                body = self.body(prompt, len(texts))
                choices = self._send("POST", "/chat/completions", body)["choices"]
                texts += [self._text(choice) for choice in choices][: body["n"]]
                if not choices:
                    raise RecordError("server_error", f"{self.url} gave an answer without a text")
        except (KeyError, TypeError) as error:
            return RecordError("server_error", f"{self.url} gave an answer of another form: {error!r}")
        except RecordError as error:
            return error
        return texts

    def _text(self, choice: dict[str, Any]) -> Text:
        text, end = choice["message"]["content"], choice.get("finish_reason")
        if text is None or end in _BROKEN:
            raise RecordError("no_text", f"{self.url} gave no whole text; its finish_reason is {end!r}")
        return Text(text, "length" if end == "length" else "stop")

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
        if self.options.own_keys_only:
            if sampling.top_k or sampling.special_tokens:
                raise JobError("own_keys_only leaves no way to ask for top_k or special_tokens")
            return body
        return body | {
            "top_k": sampling.top_k or self._all_tokens,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "skip_special_tokens": not sampling.special_tokens,
        }

    def _served(self) -> list[str]:
        """Names of the models; none if the server has no list of them.

        Raises:
            JobError: it does not answer.
        """
        try:
            models = self._send("GET", "/models")["data"]
            self._all_tokens = -1 if any(model.get("owned_by") == "sglang" for model in models) else 0
            return [model["id"] for model in models]
        except RecordError as error:
            if error.kind == "refused":
                return []
            raise JobError(str(error)) from error
        except (KeyError, TypeError, AttributeError):
            return []

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON of the answer.

        Raises:
            RecordError: ``refused`` or ``text_too_long`` (this request will not do), ``timeout``, ``server_error``.
            JobError: no connection, the server refuses everything, or it has answered nothing until the deadline.
        """
        listing = body is None
        began = time.monotonic()
        until = began + (min(_LISTING, self.options.deadline) if listing else self.options.deadline)
        for attempt in range(self.options.retries + 1):
            try:
                made = self._send_once(method, path, body, until)
            except _MayPassError as failure:
                wait = min(60.0, max(failure.wait, self.options.backoff * 2**attempt))
                left = until - time.monotonic() - wait
                if attempt < self.options.retries and left > 0:
                    logger.warning("%s; try %d of %d in %.3g s", failure, attempt + 2, self.options.retries + 1, wait)
                    if not self._stopped.wait(wait):
                        continue
                timed_out = isinstance(failure.error, RecordError) and failure.error.kind == "timeout"
                if timed_out and not listing and self._answered < began:
                    silent = (
                        f"{failure}, nor any other request in {time.monotonic() - began:.3g} s: it hangs, or is slow"
                    )
                    raise JobError(f"{silent} (raise timeout and deadline)") from failure
                raise failure.error from failure.__cause__
            if not listing:
                self._answered = time.monotonic()
            return made
        raise AssertionError("the loop returns or raises")

    def _send_once(self, method: str, path: str, body: dict[str, Any] | None, until: float) -> Any:
        seconds = max(0.001, min(self.options.timeout, until - time.monotonic()))
        limits = httpx.Timeout(seconds, connect=min(30.0, seconds))
        try:
            answer = self._receive(method, path, body, limits, time.monotonic() + seconds)
        except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as error:
            message = f"{self.url} did not answer within {seconds:.3g} s"
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
        unknown = next((key for key in _EXTENSIONS if key in (body or {}) and key in failure), None)
        if unknown and answer.status_code in {400, 422}:
            raise JobError(f"{failure} (if it knows OpenAI's keys alone, set the option own_keys_only=True)")
        raise refusal(failure)

    def _receive(
        self, method: str, path: str, body: dict[str, Any] | None, limits: httpx.Timeout, until: float
    ) -> httpx.Response:
        """The whole answer. Raises httpx.ReadTimeout after ``until`` too, whatever trickles in."""
        with self._client.stream(method, self.url + path, json=body, timeout=limits) as answer:
            content = bytearray()
            for chunk in answer.iter_bytes():
                content += chunk
                if time.monotonic() > until:
                    raise httpx.ReadTimeout("it goes on and on", request=answer.request)
        return httpx.Response(answer.status_code, headers=_decoded(answer.headers), content=bytes(content))


class _MayPassError(Exception):
    """A failure after which it makes sense to send again, what it becomes if that does not help, and the least wait."""

    def __init__(self, error: Exception, wait: float = 0.0):
        super().__init__(str(error))
        self.error, self.wait = error, wait


def _decoded(headers: httpx.Headers) -> httpx.Headers:
    """Those of a body that is no longer compressed."""
    return httpx.Headers([pair for pair in headers.multi_items() if pair[0] != "content-encoding"])


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
