"""Groups of images that look alike: within a few bits of perceptual hash, or above a cosine of image features.

Pairs of near neighbours come from an index of faiss, groups are the connected components over them: if a is near b and
b near c, all three are one group, though a may be far from c. Components are kept as one label per image and neighbours
are folded into them as they come, so that memory is a few words per image however many pairs are near.
"""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import faiss
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASH_BITS = 64
FLAT_HASHES = 20_000  # up to here comparing all with all is quicker than a table
FLAT_FEATURES = 50_000
_STRETCHES = 3
_QUERIES = 4096
_FEATURE_QUERIES = 256
_FINDS = 2**24  # that a search may give at most: 12 bytes each
_TRAINING_PER_LIST = 64
_PROBES = 16

Near = tuple[np.ndarray, np.ndarray]


def groups_of_hashes(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Group images by perceptual hash, exactly.

    Above 20,000 distinct hashes the index is a table over three stretches of 21 bits: hashes that differ in at most
    ``distance`` bits differ in at most ``distance // 3`` bits of one stretch, so looking up each stretch with that many
    bits flipped finds them all. At a distance of 6 to 8, one core looks up an image in 0.14 ms among a million and in
    3 ms among ten million: for all of these 9 core-hours and 1.1 GB of memory.

    Args:
        hashes: (n,) uint64, one perceptual hash each.
        distance: bits in which neighbours may differ, 0 to 63.

    Returns:
        (n,) int64: for each image the smallest position in its group, its own if it is alone.
    """
    # equal hashes first: a million blank tiles would else be half a million million pairs
    distinct, first, of = np.unique(hashes, return_index=True, return_inverse=True)
    if not distance or len(distinct) < 2:
        return first[of].astype(np.int64)
    codes = np.ascontiguousarray(distinct).view(np.uint8).reshape(-1, HASH_BITS // 8)
    index: Any = faiss.IndexBinaryFlat(HASH_BITS)
    if len(codes) > FLAT_HASHES:
        index = faiss.IndexBinaryMultiHash(HASH_BITS, _STRETCHES, HASH_BITS // _STRETCHES)
        index.nflip = distance // _STRETCHES
    index.add(codes)

    def near() -> Iterator[Near]:
        # a table finds few: hashes that are equal were joined before
        queries = min(_QUERIES, _FINDS // len(codes)) if len(codes) <= FLAT_HASHES else _QUERIES
        for start in range(0, len(codes), queries):
            # faiss finds what is nearer than the radius
            ends, _, found = index.range_search(codes[start : start + queries], distance + 1)
            yield _queries(ends, start), found

    return _named_by_smallest(_components(len(codes), near()), first)[of]


def groups_of_features(features: np.ndarray, similarity: float) -> np.ndarray:
    """Group images by the cosine of their features.

    Up to 50,000 images all are compared with all. Above, an inverted file of 4 sqrt(n) cells compares an image with
    those in its 16 nearest cells. Near duplicates lie in the same cell or beside its border, so few are missed (none of
    49,978 pairs above 0.95 among 100,000 made features, in a fifteenth of the time), and nothing is joined that should
    not be. The index holds features as float16: 10 GB for ten million images of 512 dimensions, each of which is
    compared with some 13,000 others. Equal features count once, so a million equal tiles cost no more than one.

    Args:
        features: (n, dim), of any length; read in slices, so a memory-mapped file does.
        similarity: least cosine of neighbours, above 0 and below 1.

    Returns:
        (n,) int64: for each image the smallest position in its group, its own if it is alone; -1 where the features are
        not finite numbers, or all 0.
    """
    groups = np.full(len(features), -1, np.int64)
    usable, first, of = _distinct(features)
    if usable.size:
        groups[usable] = _named_by_smallest(_near_features(features, first, similarity), first)[of]
    return groups


def _distinct(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of features with a direction, of the first of each different one, and which of these each one is."""
    usable, digests = [np.empty(0, np.int64)], [np.empty(0, "S16")]
    for start in range(0, len(features), _QUERIES):
        some = np.ascontiguousarray(features[start : start + _QUERIES])
        good = np.isfinite(some).all(1) & some.any(1)
        usable.append(start + np.flatnonzero(good))
        digests.append(np.array([blake2b(row, digest_size=16).digest() for row in some[good]], "S16"))
    places = np.concatenate(usable)
    _, first, of = np.unique(np.concatenate(digests), return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return places, places[first[order]], rank[of]


def _near_features(features: np.ndarray, places: np.ndarray, similarity: float) -> np.ndarray:
    """(len(places),) the component of each of the features at these places."""
    count, dim = len(places), features.shape[1]
    index: Any = faiss.IndexFlatIP(dim)
    most = count  # that one query can find
    if count > FLAT_FEATURES:
        lists = int(4 * count**0.5)
        kind, metric = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFScalarQuantizer(index, dim, lists, kind, metric)
        index.nprobe = _PROBES
        chosen = np.random.default_rng(0).choice(count, min(count, _TRAINING_PER_LIST * lists), replace=False)
        index.train(_unit(features[places[np.sort(chosen)]]))
    for start in range(0, count, _QUERIES):
        index.add(_unit(features[places[start : start + _QUERIES]]))
    if count > FLAT_FEATURES:
        cells = np.sort([index.invlists.list_size(cell) for cell in range(index.nlist)])
        most = int(cells[-_PROBES:].sum())
    queries = max(1, min(_FEATURE_QUERIES, _FINDS // most))

    def near() -> Iterator[Near]:
        for start in range(0, count, queries):
            ends, _, found = index.range_search(_unit(features[places[start : start + queries]]), similarity)
            yield _queries(ends, start), found

    return _components(count, near())


def _unit(features: np.ndarray) -> np.ndarray:
    rows = np.array(features, np.float32, order="C")
    faiss.normalize_L2(rows)
    return rows


def _queries(ends: np.ndarray, start: int) -> np.ndarray:
    """The positions of the queries, each as often as it found something."""
    many = ends[1:].astype(np.int64) - ends[:-1].astype(np.int64)
    return np.repeat(np.arange(start, start + len(many)), many)


def _named_by_smallest(components: np.ndarray, names: np.ndarray) -> np.ndarray:
    """For each node the smallest name in its component."""
    smallest = np.full(len(names), np.iinfo(np.int64).max)
    np.minimum.at(smallest, components, names)
    return smallest[components]


def _components(count: int, near: Iterator[Near]) -> np.ndarray:
    """(count,) the component of each node, folding neighbours in whenever they are more than the nodes."""
    labels = np.arange(count)
    waiting: list[Near] = []
    held = 0

    def fold() -> None:
        nonlocal labels, held
        ends = [np.concatenate(side) for side in zip(*waiting, strict=True)]
        graph = coo_array((np.ones(len(ends[0]), np.float32), (labels[ends[0]], labels[ends[1]])), shape=(count, count))
        labels = connected_components(graph, directed=False)[1][labels]
        waiting.clear()
        held = 0

    for one, other in near:
        later = other > one  # each pair once
        waiting.append((one[later], other[later]))
        held += len(waiting[-1][0])
        if held > count:
            fold()
    if held:
        fold()
    return labels
