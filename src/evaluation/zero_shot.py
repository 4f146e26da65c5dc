"""Zero-shot classification: which class, said in words, is nearest to an image.

A class vector is the normalised mean of the normalised features of its prompts. Classes are ranked by cosine, and equal
ones by their number. An image that cannot be used is wrong: every share is of all images.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.evaluation.class_sets import ClassSet, prompts_of, read_set
from src.evaluation.features import FeatureStore, exact_unit, image_state
from src.evaluation.results import UNUSABLE_SHOWN, Result, share, with_interval
from src.model.clip import Clip

TASK = "zero_shot"
TOP = 5
_CHUNK = 65536  # images compared with all classes at a time
_RESAMPLES = 2000


def class_vectors(text_features: Tensor) -> Tensor:
    """Features of prompts (classes, templates, dim) to class vectors, float32 (classes, dim), all of length 1."""
    return exact_unit(torch.nn.functional.normalize(text_features.double(), dim=-1).mean(dim=1))


def classify(images: Tensor, classes: Tensor, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest class of every image, and at which place (from 0) its own class is.

    Args:
        images, classes: (n, dim) and (classes, dim), as of :func:`src.evaluation.features.exact_unit`.
        labels: (n,), numbers of classes.
    """
    predictions, places = [], []
    numbers = np.arange(len(classes))
    for start in range(0, len(images), _CHUNK):
        scores = images[start : start + _CHUNK].double().numpy() @ classes.double().numpy().T
        own = labels[start : start + _CHUNK, None]
        own_score = np.take_along_axis(scores, own, axis=1)
        predictions.append(scores.argmax(axis=1))
        places.append(((scores > own_score) | ((scores == own_score) & (numbers < own))).sum(axis=1))
    return np.concatenate(predictions), np.concatenate(places)


def measure(predictions: np.ndarray, places: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, Any]:
    """Metrics of a classification, as :class:`~src.evaluation.results.Result` holds them, and its tables.

    Args:
        predictions: (n,), -1 for an image that could not be used.
        places: (n,), of its own class.
        labels: (n,).
        classes: how many there are.

    Returns:
        ``metrics``: ``top1``, ``top5`` (null with fewer than five classes), ``mean_per_class_recall`` over the classes
        that have images; ``recall``: one per class, null without images; ``confusion``: [true class][predicted class].
    """
    n = len(labels)
    right = (predictions >= 0) & (places == 0)
    among = (predictions >= 0) & (places < TOP)
    of_class = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels[right], minlength=classes)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels[predictions >= 0], predictions[predictions >= 0]), 1)
    present = of_class > 0
    recall = hits[present] / of_class[present]
    # Images drawn again within each class: the hits of a class are then binomial.
    drawn = np.random.default_rng(0).binomial(of_class[present], recall, (_RESAMPLES, len(recall))) / of_class[present]
    top5 = share(int(among.sum()), n) if classes >= TOP else {"value": None, "low": None, "high": None, "n": n}
    return {
        "metrics": {
            "top1": share(int(right.sum()), n),
            "top5": top5,
            "mean_per_class_recall": with_interval(float(recall.mean()), n, drawn.mean(axis=1)),
        },
        "recall": [share(int(hit), int(of)) for hit, of in zip(hits, of_class, strict=True)],
        "confusion": confusion.tolist(),
    }


def evaluate_class_folders(clip: Clip, folder: str | Path, templates: Sequence[str] = (), **options: Any) -> Result:
    """Classify the images of a set with a model as it is now; may be called between training steps.

    Args:
        folder: such as ``val/AID_Image``, with a folder of images per class.
        templates: instead of the set's own, see :func:`src.evaluation.class_sets.prompts_of`.
        options: ``batch_size``, ``workers``, ``cache``, ``progress`` of :class:`~src.evaluation.features.FeatureStore`.

    Returns:
        A result whose ``metrics["top1"]["value"]``, ``["top5"]`` and ``["mean_per_class_recall"]`` are what came out.

    Raises:
        JobError: no such folder, no images in it, or a template without ``{}``.
    """
    return evaluate_set(FeatureStore(clip, **options), folder, templates)


def evaluate_set(store: FeatureStore, folder: str | Path, templates: Sequence[str] = ()) -> Result:
    """:func:`evaluate_class_folders` with features of a store, which can keep them."""
    images = read_set(folder)
    prompts = prompts_of(images.name, templates)
    names = [prompts.name(name) for name in images.classes]
    texts = [text for name in names for text in prompts.of(name)]
    text_features = store.texts(texts).vectors.unflatten(0, (len(names), -1))
    found = store.images([image_state(path) for path in images.paths], lambda: images.paths)
    labels, usable = np.array(images.labels), found.usable.numpy()
    predictions, places = np.full(len(labels), -1), np.full(len(labels), len(names))
    if usable.any():
        predictions[usable], places[usable] = classify(
            found.vectors[found.usable], class_vectors(text_features), labels[usable]
        )
    measured = measure(predictions, places, labels, len(names))
    return Result(
        task=TASK,
        set=images.name,
        model=store.clip.path,
        metrics=measured["metrics"],
        counts={
            "records": len(labels),
            "ok": int(usable.sum()),
            "errors": dict(Counter(error.kind for error in found.errors.values())),
            "classes": len(names),
            "other_files": images.other_files,
        },
        settings={
            "images": str(images.folder),
            "templates": list(prompts.templates),
            "dtype": str(store.clip.dtype).removeprefix("torch."),
            "device": str(store.clip.device),
            "batch_size": store.batch_size,
        },
        details={
            "classes": _classes(images, names, measured),
            "confusion": measured["confusion"],
            "unusable": [
                {"path": images.paths[i].relative_to(images.folder).as_posix(), "kind": e.kind, "message": str(e)}
                for i, e in list(found.errors.items())[:UNUSABLE_SHOWN]
            ],
        },
    )


def _classes(images: ClassSet, names: Sequence[str], measured: dict[str, Any]) -> list[dict[str, Any]]:
    rows = zip(images.classes, names, measured["recall"], strict=True)
    return [{"folder": folder, "name": name, "recall": recall} for folder, name, recall in rows]
