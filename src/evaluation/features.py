"""Features of images and texts, found once: threads decode while the model works, and a folder keeps what it found.

Cosines are exact. Unit vectors are rounded to multiples of 2^-24 (as fine as float32), so that every product and sum of
a dot product is a multiple of 2^-48 below 2 and has room in float64. Equal vectors therefore tie exactly, and no rank
depends on blocks, batch size, order of summation or device.
"""

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from src.dataset.images import ImageSource, image_key, open_image
from src.errors import JobError, RecordError
from src.model.clip import Clip

_GRID = 2.0**24
_ABSENT = "absent"  # the end of the state of an image whose file cannot be found
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """Features of a list of images or texts.

    Attributes:
        vectors: float32 (n, dim) on the CPU, as of :func:`exact_unit`; zero where there is an error.
        errors: by number why an image has none.
    """

    vectors: Tensor
    errors: dict[int, RecordError] = field(default_factory=dict)

    @property
    def usable(self) -> Tensor:
        """bool (n,): which have features."""
        mask = torch.ones(len(self.vectors), dtype=torch.bool)
        mask[list(self.errors)] = False
        return mask


@dataclass(frozen=True)
class FeatureStore:
    """Finds features with one model.

    Attributes:
        batch_size: images in a forward pass.
        workers: threads that decode.
        cache: folder that keeps features, one file per model and list of images or texts; None: none are kept. Those
            of a list in which an image could not be read for a reason that may pass are not kept.
        progress: whether bars are shown.
    """

    clip: Clip
    batch_size: int = 128
    workers: int = 8
    cache: Path | None = None
    progress: bool = True

    @cached_property
    def model(self) -> str:
        """The fingerprint of the model."""
        return self.clip.fingerprint()

    def images(
        self, states: Sequence[str], sources: Callable[[], Iterable[ImageSource]], root: Path | None = None
    ) -> Features:
        """Features of images.

        Args:
            states: :func:`image_state` of each, by which the kept features are found.
            sources: gives the images themselves, read one after the other and only if nothing is kept.
            root: as of :func:`src.dataset.images.open_image`.

        Raises:
            JobError: fewer images come than there are states.
        """
        return self._kept("image", states, lambda: self._encode_images(sources(), len(states), root))

    def texts(self, texts: Sequence[str]) -> Features:
        """Features of texts, cut to the model's context.

        Raises:
            JobError: the model gives some that are not finite.
        """
        return self._kept("text", texts, lambda: self._encode_texts(texts))

    def _encode_images(self, sources: Iterable[ImageSource], total: int, root: Path | None) -> Features:
        def load(source: ImageSource) -> Tensor | RecordError:
            try:
                return self.clip.preprocess(open_image(source, root))
            except RecordError as error:
                return error

        errors: dict[int, RecordError] = {}
        vectors = torch.zeros(total, 0)
        batch: dict[int, Tensor] = {}
        source = iter(sources)
        with self._bar(total, "image") as bar, ThreadPoolExecutor(self.workers, thread_name_prefix="decode") as pool:
            ahead = deque(pool.submit(load, s) for s in islice(source, 2 * self.workers + self.batch_size))
            number = 0
            while ahead:
                loaded = ahead.popleft().result()
                ahead.extend(pool.submit(load, s) for s in islice(source, 1))
                if isinstance(loaded, RecordError):
                    errors[number] = loaded
                    bar.set_postfix(errors=len(errors), refresh=False)
                else:
                    batch[number] = loaded
                if len(batch) == self.batch_size or (batch and not ahead):
                    found = self.clip.image_features(torch.stack(list(batch.values()))).cpu()
                    vectors = vectors if vectors.shape[1] else torch.zeros(total, found.shape[1])
                    vectors[list(batch)] = exact_unit(found)
                    batch = {}
                number += 1
                bar.update()
        if number < total:
            raise JobError(f"{total} images were listed, but {number} came: has the data set changed?")
        for index in (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist():
            errors[index] = RecordError("not_finite", "the model gives no finite features; try another dtype")
            vectors[index] = 0
        return Features(vectors, dict(sorted(errors.items())))

    def _encode_texts(self, texts: Sequence[str]) -> Features:
        parts = []
        with self._bar(len(texts), "text") as bar:
            for start in range(0, len(texts), self.batch_size):
                some = texts[start : start + self.batch_size]
                vectors = self.clip.text_features(some).cpu()
                if not vectors.isfinite().all():
                    raise JobError(f"{self.clip.path} gives text features that are not finite; try another dtype")
                parts.append(exact_unit(vectors))
                bar.update(len(some))
        return Features(torch.cat(parts) if parts else torch.zeros(0, 0))

    def _bar(self, total: int, unit: str) -> tqdm:
        return tqdm(total=total, unit=unit, desc=f"{unit} features", disable=not self.progress)

    def _kept(self, kind: str, content: Sequence[str], find: Callable[[], Features]) -> Features:
        if self.cache is None:
            return find()
        digest = hashlib.blake2b(digest_size=12)
        for item in content:
            digest.update(f"{len(item)}:{item}".encode(errors="surrogatepass"))
        path = self.cache / self.model / f"{kind}-{digest.hexdigest()}.safetensors"
        if path.exists():
            try:
                return _load(path)
            except (SafetensorError, OSError, ValueError, KeyError) as error:
                _log.warning("%s is damaged (%s): found anew", path, error)
        features = find()
        passing = [error for index, error in features.errors.items() if _may_pass(error, content[index])]
        if passing:
            _log.warning("features are not kept: %d images may be readable another time (%s)", len(passing), passing[0])
        else:
            _save(features, path)
        return features


def exact_unit(features: Tensor) -> Tensor:
    """Rows at length 1, rounded to multiples of 2^-24: float32 (n, dim), whose dot products float64 holds exactly."""
    return (normalize(features.double(), dim=-1) * _GRID).round().div(_GRID).float()


def image_state(source: ImageSource, root: Path | None = None) -> str:
    """A text that changes when an image does: its path, size and time of change, or a digest of its bytes."""
    key = image_key(source, root)
    if not key.startswith("path:"):
        return key
    try:
        status = Path(key.removeprefix("path:")).stat()
    except (OSError, ValueError):
        return f"{key} {_ABSENT}"
    return f"{key} {status.st_size} {status.st_mtime_ns}"


def _may_pass(error: RecordError, state: str) -> bool:
    """Whether an image may be usable next time while its state stays: the system failed, and not the file."""
    cause = error.__cause__
    failed = isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None)
    return failed and not state.endswith(f" {_ABSENT}")  # a file that comes back has another state


def _save(features: Features, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    errors = {index: (error.kind, str(error)) for index, error in features.errors.items()}
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({"vectors": features.vectors}, partial, metadata={"errors": json.dumps(errors)})
    partial.replace(path)


def _load(path: Path) -> Features:
    with safe_open(path, framework="pt") as file:
        errors = json.loads(file.metadata()["errors"])
        vectors = file.get_tensor("vectors")
    return Features(vectors, {int(index): RecordError(*error) for index, error in errors.items()})
