"""Score image-text pairs with a trained score model, fast, and with the same result in any company.

>>> from src.curation.scorer import Scorer
>>> scorer = Scorer.from_pretrained()          # the embedded model; or a folder, or "PumpkinCat/ScoreRS"
>>> scorer.score([{"image": "harbour.jpg", "text": "ships beside a pier ."}])
>>> scorer.score_candidates(["harbour.jpg"], "How many ships?", ["Two.", "Seven."])

What makes it fast: an image is decoded and encoded once however many texts share it; images are
decoded and texts tokenised in the background while the model works; texts that share images share the forward pass over
their common prefix; batches are filled by a token budget after sorting by length; equal pairs are scored once.
"""

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor

from src.chat import TEMPLATES, Template
from src.curation.batching import Row, score_rows
from src.dataset.collate import EncodedImage, Pair, PairEncoder, pair_images
from src.dataset.images import ImageLimits, ImageSource, image_key
from src.errors import JobError, RecordError
from src.model.checkpoint import locate
from src.model.qwen_reward import Qwen2Reward

NANO = "assets/nano/scorer"
WINDOW = 256
_AHEAD = 2  # windows in memory: the one that the model works on, and the next


@dataclass
class ScorerConfig:
    """The keys by which programs load a scorer: arguments of :meth:`Scorer.from_pretrained`, explained there."""

    path: str = NANO
    device: str = "auto"
    dtype: str = "auto"
    template: str = "answer"
    position_scheme: str = "auto"
    max_tokens: int = 8192
    max_pixels: int | None = None
    token_budget: int = 8192
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """What became of one pair: a score, or the error that kept it from one; and the size of its first image."""

    score: float | None = None
    error: RecordError | None = None
    width: int | None = None
    height: int | None = None


class Scorer:
    """A score model with its processor, template and limits.

    A score depends on the pair, the weights, the template and the position scheme, and on nothing else.

    Args:
        model: the score model, on its device; it is put in evaluation mode.
        encoder: how pairs become model inputs.
        token_budget: tokens (padding included) in one forward pass of the language model.
        workers: threads that decode images; None means one per core, at most 8.
    """

    def __init__(self, model: Qwen2Reward, encoder: PairEncoder, token_budget: int = 8192, workers: int | None = None):
        self.model = model.eval()
        self.encoder = encoder
        self.token_budget = token_budget
        self.workers = workers or min(8, os.cpu_count() or 1)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path = NANO,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        template: Template = "answer",
        position_scheme: str = "auto",
        image_root: str | Path | None = None,
        limits: ImageLimits | None = None,
        max_tokens: int = 8192,
        max_pixels: int | None = None,
        **options: Any,
    ) -> "Scorer":
        """Load a score model with its own processor.

        Args:
            path: folder or hub id, in any layout that :meth:`Qwen2Reward.from_pretrained` reads.
            device: ``auto`` is CUDA where there is one, else the CPU.
            dtype: ``auto`` is bfloat16 on a GPU and float32 on the CPU.
            template: see :mod:`src.chat`.
            position_scheme: ``auto``, ``mrope`` or ``sequential``.
            image_root: folder that image paths are relative to and must stay inside.
            limits: what an image may measure.
            max_tokens: longest chat text.
            max_pixels: shrink images to at most so many pixels; None keeps the processor's own limit.
            options: ``token_budget``, ``workers``.

        Raises:
            JobError: no such model, or it cannot be used as a score model.
        """
        if template not in TEMPLATES:
            raise JobError(f"unknown template {template!r}; known: {', '.join(TEMPLATES)}")
        given = {"max_tokens": max_tokens, "max_pixels": max_pixels, **options}
        if wrong := [f"{key}={value}" for key, value in given.items() if value is not None and value < 1]:
            raise JobError(f"must be at least 1: {', '.join(wrong)}")
        path = locate(path)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = torch.float32 if device == "cpu" else torch.bfloat16
        try:
            model = Qwen2Reward.from_pretrained(
                path, position_scheme=position_scheme, dtype=dtype, device_map={"": device}
            )
        except (RuntimeError, ValueError, AttributeError) as error:
            raise JobError(f"cannot load {path!r} with device={device}, dtype={dtype}: {error}") from error
        try:
            processor = AutoProcessor.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise JobError(f"model {path!r} has weights but no usable processor: {error}") from error
        if not getattr(processor, "image_processor", None) or not processor.tokenizer.chat_template:
            raise JobError(f"model {path!r} lacks an image processor or a chat template")
        if max_pixels:
            processor.image_processor.size = replace(processor.image_processor.size, longest_edge=max_pixels)
        root = Path(image_root) if image_root is not None else None
        encoder = PairEncoder(processor, template, root, limits or ImageLimits(), max_tokens)
        return cls(model, encoder, **options)

    def rooted(self, image_root: Path | None) -> "Scorer":
        """Return this scorer, sharing its model, with image paths relative to and kept under another folder."""
        return Scorer(self.model, replace(self.encoder, image_root=image_root), self.token_budget, self.workers)

    def score(self, pairs: Iterable[Pair]) -> list[float]:
        """Return one score per pair, each > 0; higher is better.

        Args:
            pairs: mappings with ``image`` or ``images`` (Pillow image, path, bytes, or ``{bytes, path}``), ``text`` and
                an optional ``question``; or ``images`` with ``turns`` (see :func:`src.chat.turn_messages`).

        Raises:
            RecordError: the first pair that cannot be scored; its message says which. :meth:`stream` goes on instead.
        """
        pairs = iter(pairs)
        scores: list[float] = []
        for window in self.stream(iter(lambda: list(islice(pairs, WINDOW)), [])):
            for result in window:
                if result.error:
                    raise RecordError(result.error.kind, f"pair {len(scores)}: {result.error}") from result.error
                assert result.score is not None
                scores.append(result.score)
        return scores

    def score_candidates(
        self, images: Sequence[Any] | ImageSource, question: str, answers: Sequence[str]
    ) -> list[float]:
        """Return one score per answer to one question about one or several images (best-of-N).

        Raises:
            RecordError: an image cannot be read, or an answer is empty or too long.
        """
        images = [images] if isinstance(images, str | Path | bytes | Image.Image | Mapping) else list(images)
        return self.score({"images": images, "question": question, "text": answer} for answer in answers)

    def stream(self, windows: Iterable[Sequence[Pair]]) -> Iterator[list[Scored]]:
        """Score window after window; the next one is decoded and tokenised while the model works on this one.

        Pairs of one window share images, prefixes and batches; nothing is shared across windows, so that a window's
        scores are the same, to the last bit, whatever came before it.
        """
        with (
            ThreadPoolExecutor(self.workers, thread_name_prefix="decode") as decoders,
            ThreadPoolExecutor(1, thread_name_prefix="begin") as beginner,
        ):
            ahead: deque[Future[_Window]] = deque()
            try:
                for pairs in windows:
                    ahead.append(beginner.submit(_Window, pairs, self.encoder, decoders))
                    if len(ahead) == _AHEAD:
                        yield self._score_window(ahead.popleft())
                while ahead:
                    yield self._score_window(ahead.popleft())
            finally:
                decoders.shutdown(cancel_futures=True)
                beginner.shutdown(cancel_futures=True)

    def _score_window(self, coming: "Future[_Window]") -> list[Scored]:
        window = coming.result()
        rows = window.rows.result()
        pad_id = self.encoder.processor.tokenizer.pad_token_id
        with torch.inference_mode():
            scores = score_rows(self.model, window.images, rows, pad_id, self.token_budget)
        return window.results(scores)


class _Window:
    """The pairs that are scored together, being decoded and tokenised in the background.

    Attributes:
        rows: the distinct (image keys, token ids) to be scored.
        images: those that can be used, by key; all there once ``rows`` is done.
    """

    def __init__(self, pairs: Sequence[Pair], encoder: PairEncoder, decoders: ThreadPoolExecutor):
        self.keys: list[tuple[str, ...] | RecordError] = []
        futures: dict[str, Future[EncodedImage]] = {}
        for pair in pairs:
            try:
                sources = pair_images(pair)
                keys = tuple(image_key(source, encoder.image_root) for source in sources)
            except RecordError as error:
                self.keys.append(error)
                continue
            self.keys.append(keys)
            for key, source in zip(keys, sources, strict=True):
                if key not in futures:
                    futures[key] = decoders.submit(encoder.image, source)
        self.images: dict[str, EncodedImage] = {}
        self._row_of: list[int | RecordError] = []
        # In the queue behind its images, it waits for those that other threads have in hand and for nothing else.
        self.rows = decoders.submit(self._tokenise, pairs, encoder, futures)

    def _tokenise(
        self, pairs: Sequence[Pair], encoder: PairEncoder, futures: Mapping[str, Future[EncodedImage]]
    ) -> list[Row]:
        broken: dict[str, RecordError] = {}
        for key, future in futures.items():
            try:
                self.images[key] = future.result()
            except RecordError as error:
                broken[key] = error
        prompts: list[str | RecordError] = []
        for pair, keys in zip(pairs, self.keys, strict=True):
            try:
                if isinstance(keys, RecordError):
                    raise keys
                if bad := next((broken[key] for key in keys if key in broken), None):
                    raise bad
                prompts.append(encoder.prompt(pair, [self.images[key] for key in keys]))
            except RecordError as error:
                prompts.append(error)
        tokens = iter(encoder.token_ids([prompt for prompt in prompts if isinstance(prompt, str)]))
        found: dict[tuple[tuple[str, ...], tuple[int, ...]], int] = {}
        for prompt, keys in zip(prompts, self.keys, strict=True):
            ids = next(tokens) if isinstance(prompt, str) else prompt
            if isinstance(ids, RecordError) or isinstance(keys, RecordError):
                self._row_of.append(ids if isinstance(ids, RecordError) else keys)  # type: ignore[arg-type]
            else:
                self._row_of.append(found.setdefault((keys, tuple(ids)), len(found)))
        return [(keys, list(ids)) for keys, ids in found]

    def results(self, scores: Sequence[float]) -> list[Scored]:
        """Give every pair its score or its error, in the order of the pairs."""
        out = []
        for keys, row in zip(self.keys, self._row_of, strict=True):
            first = self.images.get(keys[0]) if isinstance(keys, tuple) and keys else None
            size = (first.width, first.height) if first else (None, None)
            if isinstance(row, RecordError):
                out.append(Scored(None, row, *size))
            elif math.isfinite(scores[row]):
                out.append(Scored(scores[row], None, *size))
            else:
                error = RecordError("not_finite", f"the model's score is {scores[row]}; try another dtype")
                out.append(Scored(None, error, *size))
        return out
