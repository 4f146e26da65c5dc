"""Retrieval over a data set of any supported format: its distinct images and captions, and what a model makes of them.

Rows of one image, by its path or bytes, are one image with several captions; equal captions are one caption, which may
belong to several images. Nothing is dropped in silence: an image that cannot be used is a query that misses, and so are
captions that have no other; a blank caption is no query, but its image is one.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from src.dataset.images import ImageSource, image_key
from src.dataset.records import DataSpec, Record, read_records, resolve_root
from src.errors import JobError, RecordError
from src.evaluation.features import Features, FeatureStore, image_state
from src.evaluation.results import UNUSABLE_SHOWN, Result
from src.evaluation.retrieval import NEVER, places, recalls

TASK = "retrieval"
_WILD = re.compile(r"\{[^{}]*\}|\[[^\[\]]*\]|[*?]+")


@dataclass
class RetrievalSet:
    """The distinct images and captions of a data set, in order of first appearance.

    Attributes:
        states: of every image what :func:`image_state` says; the images themselves stay on disk.
        first_rows: of every image the row in which it comes first.
        captions: the distinct texts.
        pairs: int64 (pairs, 2), numbers of an image and of a caption that belong together, each once.
        row_image: of every record the number of its image, -1 where it has none.
        errors: by row why a record cannot be used as it is.
        blank_captions: how many captions say nothing.
    """

    spec: DataSpec
    root: Path
    states: list[str] = field(default_factory=list)
    first_rows: array = field(default_factory=lambda: array("q"))
    captions: list[str] = field(default_factory=list)
    pairs: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    row_image: array = field(default_factory=lambda: array("q"))
    errors: dict[int, RecordError] = field(default_factory=dict)
    blank_captions: int = 0

    def sources(self) -> Iterator[ImageSource]:
        """The images, read from the data set anew, in their order."""
        wanted = iter(self.first_rows)
        row = next(wanted, None)
        for record in read_records(self.spec):
            if row is None:
                return
            if record.row == row:
                yield record.images[0]
                row = next(wanted, None)


def read_retrieval_set(spec: DataSpec, progress: bool = True) -> RetrievalSet:
    """Read a data set once, for its captions and to tell its images apart.

    Raises:
        JobError: it cannot be read, or holds no captions and images.
    """
    found = RetrievalSet(spec, resolve_root(spec))
    images: dict[str, int] = {}
    captions: dict[str, int] = {}
    pairs: dict[tuple[int, int], None] = {}
    for record in tqdm(read_records(spec), unit="record", desc="read", disable=not progress):
        image, error = -1, record.error or _unfit(record)
        if len(record.images) == 1:
            key = image_key(record.images[0], found.root)
            image = images.setdefault(key, len(images))
            if image == len(found.states):
                found.states.append(image_state(record.images[0], found.root))
                found.first_rows.append(record.row)
        for text in record.texts:
            if not text:
                found.blank_captions += 1
            else:
                caption = captions.setdefault(text, len(captions))
                if image >= 0:
                    pairs[image, caption] = None
        found.row_image.append(image)
        if error is not None:
            found.errors[record.row] = error
    if not images or not captions:
        raise JobError(f"{spec.path} holds {len(images)} images and {len(captions)} captions; retrieval needs both")
    found.captions = list(captions)
    found.pairs = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    return found


def evaluate_retrieval(
    store: FeatureStore, spec: DataSpec, ks: tuple[int, ...] = (1, 5, 10), name: str | None = None
) -> Result:
    """Recall at k of a model on a data set.

    Args:
        store: of the model; its device compares too.
        spec: any format of :mod:`src.dataset.records`; conversations have no captions.
        ks: numbers from 1 on.
        name: of the set in the result; by default :func:`data_name`.

    Raises:
        JobError: the data set cannot be read or holds nothing to retrieve, or a k below 1.
    """
    if not ks or min(ks) < 1:
        raise JobError(f"recall at k needs k of at least 1, not {', '.join(map(str, ks)) or 'none'}")
    ks = tuple(sorted(set(ks)))
    data = read_retrieval_set(spec, store.progress)
    images = store.images(data.states, data.sources, data.root)
    texts = store.texts(data.captions)
    image_places, text_places = _places(store, images, texts, data.pairs)
    return Result(
        task=TASK,
        set=name or data_name(spec.path),
        model=store.clip.path,
        metrics=recalls(image_places, text_places, data.pairs, ks),
        counts=_counts(data, images),
        settings={
            **data_settings(spec),
            "recall_k": list(ks),
            "dtype": str(store.clip.dtype).removeprefix("torch."),
            "device": str(store.clip.device),
            "batch_size": store.batch_size,
        },
        details={"unusable": _unusable(data, images)},
    )


def data_name(path: str) -> str:
    """The name of a file or folder; of a pattern its fixed words, or else those of the nearest folder that has some.

    ``RSICD/test.csv`` is "test", ``RSICD/train-*.parquet`` is "train", and ``RSICD/*.tar`` is "RSICD".
    """
    given = Path(path).absolute()
    if given.exists():
        return given.name if given.is_dir() else given.stem
    pattern = Path(_WILD.sub("*", str(given)))
    for part in (pattern.stem, *reversed(pattern.parent.parts)):
        if words := [word for text in part.split("*") if (word := text.strip("-_. /"))]:
            return "-".join(words)
    return given.stem


def data_settings(spec: DataSpec) -> dict[str, Any]:
    """What a result says about its data. Raises JobError as :func:`src.dataset.records.resolve_root`."""
    return {
        "data": spec.path,
        "image_root": str(resolve_root(spec)),
        "image_column": spec.image_column,
        "text_column": spec.text_column,
    }


def _places(store: FeatureStore, images: Features, texts: Features, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`places`, with unusable images left out of what is ranked: as queries they never find anything."""
    usable = images.usable.numpy()
    if not usable.any():
        raise JobError(f"none of {len(usable)} images can be used; the first: {next(iter(images.errors.values()))}")
    number = np.cumsum(usable) - 1
    kept = pairs[usable[pairs[:, 0]]]
    kept = np.stack([number[kept[:, 0]], kept[:, 1]], axis=1)
    found, text_places = places(
        images.vectors[images.usable], texts.vectors, kept, device=store.clip.device, progress=store.progress
    )
    image_places = np.full(len(usable), NEVER)
    image_places[usable] = found
    return image_places, text_places


def _row_errors(data: RetrievalSet, images: Features) -> dict[int, RecordError]:
    """By row, its own error or that of its image."""
    broken = {row: images.errors[image] for row, image in enumerate(data.row_image) if image in images.errors}
    return dict(sorted({**broken, **data.errors}.items()))


def _counts(data: RetrievalSet, images: Features) -> dict[str, Any]:
    errors = _row_errors(data, images)
    return {
        "records": len(data.row_image),
        "ok": len(data.row_image) - len(errors),
        "errors": dict(Counter(error.kind for error in errors.values())),
        "images": len(data.states),
        "unusable_images": len(images.errors),
        "captions": len(data.captions),
        "blank_captions": data.blank_captions,
        "pairs": len(data.pairs),
    }


def _unusable(data: RetrievalSet, images: Features) -> list[dict[str, Any]]:
    shown = list(_row_errors(data, images).items())[:UNUSABLE_SHOWN]
    return [{"row": row, "kind": error.kind, "message": str(error)} for row, error in shown]


def _unfit(record: Record) -> RecordError | None:
    if record.turns:
        return RecordError("no_caption", "a conversation has no caption")
    if len(record.images) > 1:
        return RecordError("several_images", f"{len(record.images)} images; retrieval needs one")
    return None
