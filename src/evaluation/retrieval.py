"""Image-to-text and text-to-image recall at k, over any number of images and captions.

An image is a hit if one of its own captions is among the first k of all captions by cosine, a caption if one of its
images is among the first k images; equal cosines, which :mod:`src.evaluation.features` makes exact, go by number.
The matrix of all cosines never exists: the best right answer of every query is known from the pairs alone, and what
lies before it is counted block by block, for both directions at once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.errors import JobError
from src.evaluation.results import Metric, resampled_ratios, with_interval

NEVER = np.iinfo(np.int64).max  # place of a right answer that does not exist
_PAIRS = 65536  # pairs whose cosines are taken at a time


def places(
    images: Tensor,
    texts: Tensor,
    pairs: np.ndarray,
    block: tuple[int, int] = (1024, 4096),
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """At which place (from 0) every image has its first own caption, and every caption its first own image.

    Args:
        images, texts: float32 (n, dim), as of :func:`src.evaluation.features.exact_unit`.
        pairs: int (pairs, 2), the numbers of an image and of a caption that belong together.
        block: images and texts compared at a time: memory, not the result, depends on it.
        device: where to compare.
        progress: whether a bar is shown.

    Returns:
        int64 (images,) and (texts,); ``NEVER`` for those in no pair.
    """
    cosines = _cosines(images, texts, pairs)
    image_best = _best(pairs[:, 0], pairs[:, 1], cosines, len(images))
    text_best = _best(pairs[:, 1], pairs[:, 0], cosines, len(texts))
    before_image = torch.zeros(len(images), dtype=torch.int64, device=device)
    before_text = torch.zeros(len(texts), dtype=torch.int64, device=device)
    image_cosine, image_own, text_cosine, text_own = (
        torch.from_numpy(values).to(device) for best in (image_best, text_best) for values in best
    )
    with tqdm(total=len(images) * len(texts), unit="pair", unit_scale=True, disable=not progress, desc="rank") as bar:
        for t in range(0, len(texts), block[1]):
            some_texts = texts[t : t + block[1]].to(device).double()
            across = slice(t, t + len(some_texts))
            text_numbers = torch.arange(t, t + len(some_texts), device=device)
            for i in range(0, len(images), block[0]):
                some_images = images[i : i + block[0]].to(device).double()
                down = slice(i, i + len(some_images))
                image_numbers = torch.arange(i, i + len(some_images), device=device)
                cosine = some_images @ some_texts.T
                best = image_cosine[down, None]
                earlier = text_numbers < image_own[down, None]
                before_image[down] += ((cosine > best) | ((cosine == best) & earlier)).sum(1, dtype=torch.int32)
                earlier = image_numbers[:, None] < text_own[across]
                best = text_cosine[across]
                before_text[across] += ((cosine > best) | ((cosine == best) & earlier)).sum(0, dtype=torch.int32)
                bar.update(cosine.numel())
    image_places, text_places = before_image.cpu().numpy(), before_text.cpu().numpy()
    image_places[np.isinf(image_best[0])] = NEVER
    text_places[np.isinf(text_best[0])] = NEVER
    return image_places, text_places


def recalls(
    image_places: np.ndarray, text_places: np.ndarray, pairs: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, Metric]:
    """``image_to_text_R@k``, ``text_to_image_R@k`` and ``mean_recall``, the mean of all of them.

    Intervals are of a bootstrap over images, as captions of one image are no independent draws: a caption goes with the
    first image it belongs to.

    Args:
        image_places, text_places: as of :func:`places`; every query counts, also one with ``NEVER``.
        pairs: as of :func:`places`.
        ks: numbers from 1 on.

    Raises:
        JobError: no images, no captions, or a k below 1.
    """
    if not len(image_places) or not len(text_places):
        raise JobError("retrieval needs at least one image and one caption")
    if not ks or min(ks) < 1:
        raise JobError(f"recall at k needs k of at least 1, not {', '.join(map(str, ks)) or 'none'}")
    names = [f"{way}_R@{k}" for way in ("image_to_text", "text_to_image") for k in ks]
    owner = np.full(len(text_places), len(image_places))  # captions of no image are clusters of their own
    np.minimum.at(owner, pairs[:, 1], pairs[:, 0])
    lost = owner == len(image_places)
    owner[lost] += np.arange(lost.sum())
    clusters = len(image_places) + int(lost.sum())
    image_hits = np.stack([image_places < k for k in ks], axis=1)
    text_hits = np.stack([text_places < k for k in ks], axis=1)
    hits = np.zeros((clusters, len(names)))
    n = np.zeros((clusters, len(names)))
    hits[: len(image_places), : len(ks)] = image_hits
    n[: len(image_places), : len(ks)] = 1
    np.add.at(hits[:, len(ks) :], owner, text_hits)
    np.add.at(n[:, len(ks) :], owner, 1)
    drawn = resampled_ratios(hits, n)
    values = [*image_hits.mean(axis=0), *text_hits.mean(axis=0)]
    queries = n.sum(axis=0).astype(int)
    found = {
        name: with_interval(float(value), int(of), column)
        for name, value, of, column in zip(names, values, queries, drawn.T, strict=True)
    }
    found["mean_recall"] = with_interval(float(np.mean(values)), len(image_places), drawn.mean(axis=1))
    return found


def _cosines(images: Tensor, texts: Tensor, pairs: np.ndarray) -> np.ndarray:
    """float64 (pairs,)."""
    parts: list[Any] = [np.zeros(0)]
    for start in range(0, len(pairs), _PAIRS):
        some = torch.from_numpy(pairs[start : start + _PAIRS])
        parts.append((images[some[:, 0]].double() * texts[some[:, 1]].double()).sum(1).numpy())
    return np.concatenate(parts)


def _best(query: np.ndarray, answer: np.ndarray, cosines: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each query's right answers the first in rank: its cosine (infinite if there is none) and its number."""
    order = np.lexsort((answer, -cosines, query))
    queries, first = np.unique(query[order], return_index=True)
    cosine, number = np.full(n, np.inf), np.zeros(n, dtype=np.int64)
    cosine[queries], number[queries] = cosines[order[first]], answer[order[first]]
    return cosine, number
