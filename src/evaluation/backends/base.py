"""What all generation back ends share: what is asked, what comes back, and how requests are read."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from PIL import Image
from tqdm import tqdm

from src.chat import Message, prompt_messages
from src.dataset.ahead import ahead
from src.dataset.images import ImageLimits, ImageSource, image_key, image_size, open_image
from src.errors import JobError, RecordError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How texts are drawn. A model's own generation settings, other than where it ends, do not count.

    Attributes:
        n: texts for a request.
        temperature: 0 takes the likeliest token each time; then all n texts are the same.
        top_p: draw from the likeliest tokens that together have this probability, in (0, 1].
        top_k: draw from so many likeliest tokens; 0 means all.
        max_new_tokens: longest text.
        seed: with it, a request's texts depend on the request and this number, not on the other requests (up to the
            rounding of the logits; engines promise less, see their modules). None draws anew each time.
        stop: a text ends before the first of these that occurs.
        special_tokens: keep special tokens, such as the marks of boxes, in the texts.
    """

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    seed: int | None = None
    stop: tuple[str, ...] = ()
    special_tokens: bool = False

    def __post_init__(self) -> None:
        fine = {
            "n": self.n >= 1,
            "temperature": 0 <= self.temperature <= 2,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "max_new_tokens": self.max_new_tokens >= 1,
            "stop": not isinstance(self.stop, str) and all(self.stop),
        }
        if wrong := [f"{key}={getattr(self, key)!r}" for key, good in fine.items() if not good]:
            raise JobError(f"impossible sampling: {', '.join(wrong)}")

    @property
    def draws(self) -> int:
        """Texts that must be computed: one where all are the same."""
        return self.n if self.temperature else 1

    def cut(self, text: "Text") -> "Text":
        """The text before the first stop string."""
        ends = [at for stop in self.stop if (at := text.text.find(stop)) >= 0]
        return Text(text.text[: min(ends)], "stop") if ends else text


Finish = Literal["stop", "length"]
"""How a text ended: by itself or at a stop string; or cut at its greatest length."""


class Text(NamedTuple):
    """One text of a model."""

    text: str
    finish: Finish


@dataclass(frozen=True)
class Request:
    """One question about any number of images.

    Attributes:
        turns: the question, or turns of which the last is the user's (see :func:`src.chat.prompt_messages`).
        images: whatever :func:`src.dataset.images.open_image` takes; a single one may be given as it is.
        sampling: instead of the call's.
        name: names the request in errors; with the seed it decides the random numbers.
    """

    turns: str | Sequence[Mapping[str, str]]
    images: Sequence[ImageSource] | ImageSource = ()
    sampling: Sampling | None = None
    name: str = ""

    @property
    def sources(self) -> Sequence[ImageSource]:
        """The images, as a sequence."""
        one = isinstance(self.images, str | Path | bytes | Mapping | Image.Image)
        return [self.images] if one else self.images  # type: ignore[list-item,return-value]


@dataclass(frozen=True)
class Generation:
    """What became of a request: its n texts and how each ended, or none and the error that kept it from them."""

    texts: list[str] = field(default_factory=list)
    finish: list[Finish] = field(default_factory=list)
    error: RecordError | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every back end can be told.

    Attributes:
        image_root: folder that image paths are relative to and must stay inside.
        limits: what an image may measure.
        window: requests that are read and answered together; as many again wait decoded.
        window_pixels: most pixels of the images of a window, three bytes each; fewer requests then make one.
        workers: threads that decode images; 0 means one per core, at most 8.
        progress: show a bar.
    """

    image_root: Path | str | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)
    window: int = 256
    window_pixels: int = 2**27
    workers: int = 0
    progress: bool = True


@dataclass(frozen=True)
class Prompt:
    """A request, read.

    Attributes:
        messages: chat messages; the ``image`` of an image part is what the back end's ``open`` made of it.
        images: the same images in order of appearance.
        keys: equal for equal images (see :func:`src.dataset.images.image_key`).
    """

    messages: list[Message]
    images: list[Any]
    keys: tuple[str, ...]
    sampling: Sampling
    name: str

    def engine_messages(self, image_part: Callable[[Any], Message]) -> list[Message]:
        """The messages as engines and servers take them: plain text where a turn shows nothing, no empty text.

        Args:
            image_part: makes a content part of an image.
        """
        told = []
        for turn in self.messages:
            parts = [part for part in turn["content"] if part["type"] == "image" or part["text"]]
            if any(part["type"] == "image" for part in parts):
                content: Any = [image_part(part["image"]) if part["type"] == "image" else part for part in parts]
            else:
                content = "".join(part["text"] for part in parts)
            told.append({"role": turn["role"], "content": content})
        return told

    def finished(self, texts: Sequence["Text"]) -> "Generation":
        """The n texts of a request, cut where they stop, from the ``draws`` that were computed."""
        whole = [self.sampling.cut(text) for text in texts] * (self.sampling.n // len(texts))
        return Generation([text.text for text in whole], [text.finish for text in whole])

    def seed(self, draw: int) -> int | None:
        """The seed of one of the texts, in [0, 2^31), from the given seed, the name and ``draw``.

        A request without a name goes by what it says and shows, or all of them would draw the same numbers.
        """
        if self.sampling.seed is None:
            return None
        said = [(turn["role"], [part.get("text") for part in turn["content"]]) for turn in self.messages]
        told = f"{self.sampling.seed}/{self.name or repr((said, self.keys))}/{draw}".encode(errors="surrogatepass")
        return int.from_bytes(hashlib.blake2b(told, digest_size=4).digest(), "big") >> 1


Answer = list[Text] | RecordError
"""The ``draws`` texts of a prompt, or why there are none."""


Keyed = tuple[Request, tuple[str, ...] | RecordError]
"""A request with the keys of its images, or why they have none."""
Watcher = Callable[[list[str]], bool]
"""Gets the texts of a request so far; says whether they shall end here."""


class Backend(ABC):
    """A model that answers requests."""

    options_type: ClassVar[type[Options]] = Options
    options: Options

    @abstractmethod
    def __init__(self, model: str | Path, options: Any = None): ...

    def generate(self, requests: Iterable[Request], sampling: Sampling | None = None) -> list[list[str]]:
        """Return the texts of each request, in order.

        Args:
            sampling: for requests without their own; None means the likeliest text of at most 512 tokens.

        Raises:
            RecordError: the first request that cannot be answered; its message says which. :meth:`stream` goes on.
            JobError: the model or its server cannot be used.
        """
        texts: list[list[str]] = []
        for number, made in enumerate(self.stream(requests, sampling)):
            if made.error:
                raise RecordError(made.error.kind, f"request {number}: {made.error}") from made.error
            texts.append(made.texts)
        return texts

    def stream(self, requests: Iterable[Request], sampling: Sampling | None = None) -> Iterator[Generation]:
        """Yield what became of each request, in order, a window at a time.

        Images of the next window are decoded in threads while the model works on this one, each image once a window.
        """
        default = sampling or Sampling()
        total = len(requests) if isinstance(requests, Sized) else None
        windows = self._windows(requests)
        workers = self.options.workers or min(8, os.cpu_count() or 1)
        with (
            ThreadPoolExecutor(workers, thread_name_prefix="decode") as decoders,
            tqdm(total=total, unit="request", disable=not self.options.progress) as bar,
            closing(ahead(windows, lambda window: self._read(window, default, decoders), 1, depth=1)) as reading,
        ):
            for _, coming in reading:
                read = coming.result()
                prompts = [prompt for prompt in read if isinstance(prompt, Prompt)]
                answers = iter(self.answer(prompts, bar.update))
                bar.update(len(read) - len(prompts))
                for prompt in read:
                    if isinstance(prompt, RecordError):
                        yield Generation(error=prompt)
                        continue
                    answer = next(answers)
                    if isinstance(answer, RecordError):
                        yield Generation(error=_named(answer, prompt.name))
                    else:
                        yield prompt.finished(answer)

    def watch(self, request: Request, sampling: Sampling, seen: Watcher) -> Generation:
        """Answer one request and tell how far it is, for those who wait for it.

        Args:
            seen: called with the texts so far; true ends them as they are. A back end that cannot look inside of its
                engine calls it once, with whole texts.
        """
        [made] = self.stream([request], sampling)
        if made.texts:
            seen(made.texts)
        return made

    @abstractmethod
    def answer(self, prompts: Sequence[Prompt], done: Callable[[int], object]) -> list[Answer]:
        """Answer the prompts of a window.

        Args:
            done: to be told how many more have been answered.
        """

    def open(self, source: ImageSource) -> Any:
        """Read an image into the form that :meth:`answer` wants; runs in threads."""
        root = self.options.image_root
        return open_image(source, Path(root) if root is not None else None, self.options.limits)

    def _windows(self, requests: Iterable[Request]) -> Iterator[list[Keyed]]:
        """Requests in windows, images by their headers: one request at least, and no more than fit the options."""
        root = Path(self.options.image_root) if self.options.image_root is not None else None
        window: list[Keyed] = []
        pixels: dict[str, int] = {}
        for request in requests:
            keyed = _keyed(request, root)
            shown = {} if isinstance(keyed[1], RecordError) else dict(zip(keyed[1], request.sources, strict=True))
            sizes = {key: self._pixels(source, root) for key, source in shown.items() if key not in pixels}
            if window and sum(pixels.values()) + sum(sizes.values()) > self.options.window_pixels:
                yield window
                window, pixels = [], {}
                sizes = {key: self._pixels(source, root) for key, source in shown.items()}
            window.append(keyed)
            pixels |= sizes
            if len(window) == self.options.window:
                yield window
                window, pixels = [], {}
        if window:
            yield window

    def _pixels(self, source: ImageSource, root: Path | None) -> int:
        try:
            width, height = image_size(source, root, self.options.limits)
        except RecordError:  # its request tells
            return 0
        return width * height

    def _read(
        self, window: Sequence[Keyed], default: Sampling, decoders: ThreadPoolExecutor
    ) -> list[Prompt | RecordError]:
        opening: dict[str, Future[Any]] = {}
        for request, keys in window:
            if isinstance(keys, RecordError):
                continue
            for key, source in zip(keys, request.sources, strict=True):
                if key not in opening:
                    opening[key] = decoders.submit(self.open, source)
        read: list[Prompt | RecordError] = []
        for request, keys in window:
            try:
                if isinstance(keys, RecordError):
                    raise keys
                images = [opening[key].result() for key in keys]
                messages = prompt_messages(request.turns, images)
                read.append(Prompt(messages, images, keys, request.sampling or default, request.name))
            except RecordError as error:
                read.append(_named(error, request.name))
        return read


def _keyed(request: Request, root: Path | None) -> Keyed:
    try:
        return request, tuple(image_key(source, root) for source in request.sources)
    except RecordError as error:
        return request, error


def _named(error: RecordError, name: str) -> RecordError:
    return RecordError(error.kind, f"{name}: {error}") if name else error
