"""Values of image-text pairs other than the score: CLIP score, image entropy, language, perceptual hash, features.

They are made in one pass over the records. Images are opened in worker threads, each once however many texts it has; of
a record with several images it is the first that is measured, as in the score table's width and height.
"""

import math
import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import torch
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from torch import Tensor

from src.curation.shards import named_texts
from src.dataset.images import ImageLimits, open_image
from src.dataset.records import Record
from src.errors import JobError, RecordError
from src.model.clip import Clip

MEASURES = ("clip_score", "image_entropy", "language", "phash", "embedding_group")
OF_IMAGES = {"clip_score", "image_entropy", "phash", "embedding_group"}
OF_CLIP = {"clip_score", "embedding_group"}
# The six languages of the United Nations and four more with much text about places. Of 12,000 distinct English captions
# of RSICD, RSITMD, UCM and Sydney 99.98 % are called English among these, 99.85 % among all 142 that the model knows:
# "Green is green water." is then Dutch, "a blue sea beach ." Gaelic.
LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "ja", "pt", "ru", "zh")
_LIBRARIES = ("torch", "torchvision", "pillow", "numpy", "scipy", "imagehash", "py3langid", "pyarrow")


@dataclass(slots=True)
class Measured:
    """What is known of one record; None where it was not asked for or could not be made.

    Attributes:
        ids: of its pairs, as in the score table.
        languages: of each pair, (ISO 639-1 code, probability among the candidates).
        clip_scores: of each pair, the cosine of image and text features, -1 to 1.
        entropy: of the grey levels of the image, 0 (all alike) to 8 bits.
        phash: 64-bit perceptual hash of the image.
        feature: unit CLIP features of the image, float16 (dim,).
        opened: whether there is an image, a measure asked for it, and it could be opened.
        not_finite: the CLIP features of the image are not all finite numbers.
        error: why the image could not be opened.
    """

    record: Record
    ids: list[str]
    texts: list[str]
    languages: list[tuple[str, float] | None]
    clip_scores: list[float | None]
    entropy: float | None = None
    phash: int | None = None
    feature: np.ndarray | None = None
    opened: bool = False
    not_finite: bool = False
    error: RecordError | None = None
    pixels: Tensor | None = None


class Measurer:
    """Makes the measures that are asked for, and nothing else.

    Args:
        measures: of ``MEASURES``.
        load: gives the CLIP model; called only if a measure needs it.
        languages: candidates for ``language``; None: all that py3langid knows.
        image_root, limits: as in scoring, so that the same images are opened.
        batch_size: images, and texts, in one forward pass.
        workers: threads that open and measure images; None: one a core, at most 8.

    Raises:
        JobError: no or unknown measures or languages, or numbers below 1; or as ``load``.
    """

    def __init__(
        self,
        measures: Sequence[str],
        load: Callable[[], Clip],
        languages: Sequence[str] | None = LANGUAGES,
        image_root: Path | None = None,
        limits: ImageLimits | None = None,
        batch_size: int = 64,
        workers: int | None = None,
    ):
        if unknown := [name for name in measures if name not in MEASURES]:
            raise JobError(f"unknown measure {unknown[0]!r}; known: {', '.join(MEASURES)}")
        if not measures:
            raise JobError(f"measures is empty; give some of {', '.join(MEASURES)}")
        if batch_size < 1 or (workers is not None and workers < 1):
            raise JobError(f"batch_size and workers must be at least 1, not {batch_size} and {workers}")
        self.measures = set(measures)
        self.image_root, self.limits = image_root, limits
        self.batch_size, self.workers = batch_size, workers or min(8, os.cpu_count() or 1)
        self.languages = sorted(set(languages or ()))
        self._identify = identifier(tuple(self.languages)) if "language" in self.measures else None
        self.clip = load() if self.measures & OF_CLIP else None

    def settings(self) -> dict[str, Any]:
        """All that decides the values of a record beside the record itself, ready for JSON."""
        asked: dict[str, Any] = {"measures": [name for name in MEASURES if name in self.measures]}
        if self._identify:
            asked["languages"] = self.languages
        if self.clip:
            asked["clip"] = {"fingerprint": self.clip.fingerprint(), "device": self.clip.device.type}
            asked["batch_size"] = self.batch_size
        versions = {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}
        return {**asked, "limits": asdict(self.limits or ImageLimits()), "versions": versions}

    def stream(self, records: Iterable[Record]) -> Iterator[list[Measured]]:
        """Measure runs of ``batch_size`` records; the next run is opened while the model works on this one."""
        records = iter(records)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="measure") as pool:
            ahead: deque[list[Future[Measured]]] = deque()
            try:
                while run := list(islice(records, self.batch_size)):
                    ahead.append([pool.submit(self._look, record) for record in run])
                    if len(ahead) > 1:
                        yield self._finish(ahead.popleft())
                while ahead:
                    yield self._finish(ahead.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _look(self, record: Record) -> Measured:
        """All that needs no model of images and texts; runs in a worker."""
        ids, texts = (list(part) for part in zip(*named_texts(record), strict=True))
        languages = [self._identify(text) if self._identify else None for text in texts]
        found = Measured(record, ids, texts, languages, [None] * len(ids))
        if not record.images or not self.measures & OF_IMAGES:
            return found
        try:
            image = open_image(record.images[0], self.image_root, self.limits)
            if self.clip:
                found.pixels = self.clip.preprocess(image)
        except RecordError as error:
            found.error = error
            return found
        except ValueError as error:
            found.error = RecordError("unreadable_image", f"the model's image processor refuses it: {error}")
            return found
        found.opened = True
        if "image_entropy" in self.measures:
            found.entropy = image.convert("L").entropy()
        if "phash" in self.measures:
            found.phash = int(str(imagehash.phash(image)), 16)
        return found

    def _finish(self, run: list[Future[Measured]]) -> list[Measured]:
        found = [future.result() for future in run]
        seen = [one for one in found if one.pixels is not None]
        if not self.clip or not seen:
            return found
        features = self.clip.image_features(torch.stack([one.pixels for one in seen if one.pixels is not None])).cpu()
        if "clip_score" in self.measures:
            texts = list(dict.fromkeys(text for one in seen for text in one.texts if text.strip()))
            of_text: dict[str, Tensor] = {}
            for start in range(0, len(texts), self.batch_size):
                some = texts[start : start + self.batch_size]
                of_text.update(zip(some, self.clip.text_features(some).cpu(), strict=True))
        for one, feature in zip(seen, features, strict=True):
            one.pixels = None
            one.not_finite = not bool(feature.isfinite().all())
            if "clip_score" in self.measures:
                cosines = [float(feature @ of_text[text]) if text in of_text else None for text in one.texts]
                one.clip_scores = [c if c is not None and math.isfinite(c) else None for c in cosines]
            if "embedding_group" in self.measures:
                one.feature = feature.numpy().astype(np.float16)
        return found


@cache
def identifier(among: tuple[str, ...]) -> Callable[[str], tuple[str, float] | None]:
    """A function of a text that gives its language (ISO 639-1) and the probability of that among the candidates.

    It gives None for a text without letters or of no known feature. What is written in no candidate language is taken
    for the likeliest of them. About 50 microseconds a caption; safe in several threads.

    Args:
        among: the candidates; empty: all 142 of py3langid, which often errs on captions of a few words.

    Raises:
        JobError: a language that py3langid does not know.
    """
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if unknown := sorted(set(among) - set(model.labels)):
        raise JobError(
            f"language.among: py3langid does not know {', '.join(unknown)}; it knows {', '.join(model.labels)}"
        )
    model.set_languages(among or None)
    count = len(model.labels)

    def identify(text: str) -> tuple[str, float] | None:
        if not any(map(str.isalpha, text)):
            return None
        code, probability = model.classify(text)
        # a text without any known feature is equally likely to be anything
        return (code, probability) if count == 1 or probability > 1.001 / count else None

    return identify
