"""Images by their content, each decoded and encoded once for all requests that show it, within a number of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from src.dataset.collate import EncodedImage


@dataclass(slots=True)
class Shown:
    """An image in use; once the vision tower has seen it, its features stand for its pixels.

    Attributes:
        features: ``(image tokens, hidden size)`` on the model's device.
    """

    key: str
    encoded: EncodedImage
    features: Tensor | None = None

    def keep_features(self, features: Tensor) -> None:
        self.features = features.clone()  # of its own memory: it came as a piece of a batch
        self.encoded = replace(self.encoded, pixel_values=torch.empty(0))


class ImageCache:
    """The images used last. Safe to share between threads.

    Args:
        room: bytes of prepared pixels kept, 4.7 kB for each 14-px patch (a 448-px image: 4.8 MB). Features take
            less in their place: 0.9 kB a patch at the size of Qwen2-VL-7B in bfloat16.
    """

    def __init__(self, room: int):
        self.room, self.used, self.hits, self.misses = room, 0, 0, 0
        self._kept: OrderedDict[str, tuple[Shown, int]] = OrderedDict()
        self._coming: dict[str, Future[Shown]] = {}
        self._lock = threading.Lock()

    def __contains__(self, key: str) -> bool:
        """Whether it is there, or is being made."""
        with self._lock:
            return key in self._kept or key in self._coming

    def get(self, key: str, make: Callable[[], EncodedImage]) -> tuple[Shown, int]:
        """The image of this content, and the bytes that it takes anew: none if it was there, or is being made.

        Raises:
            RecordError: as ``make``; nothing is kept then.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                self.hits += 1
                return self._kept[key][0], 0
            coming, mine = self._coming.get(key), False
            if coming is None:
                coming, mine = self._coming.setdefault(key, Future()), True
            self.misses += mine
            self.hits += not mine
        if not mine:
            return coming.result(), 0
        try:
            shown = Shown(key, make())
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            coming.set_exception(error)
            raise
        size = shown.encoded.pixel_values.nbytes
        with self._lock:
            del self._coming[key]
            if size <= self.room:  # one that is larger would only drive out all others
                self._kept[key] = shown, size
                self.used += size
            while self.used > self.room:
                self.used -= self._kept.popitem(last=False)[1][1]
        coming.set_result(shown)
        return shown, size
