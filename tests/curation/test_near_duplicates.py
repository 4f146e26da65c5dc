"""Groups of near duplicates: as a slow twin finds them, whatever the index and the order."""

import numpy as np
import pytest

from src.curation import near_duplicates
from src.curation.near_duplicates import groups_of_features, groups_of_hashes


def twin(near: np.ndarray) -> list[int]:
    """The smallest member of each one's group, by spreading names until nothing changes."""
    names = list(range(len(near)))
    while True:
        spread = [min(names[k] for k in np.flatnonzero(row)) for row in near]
        if spread == names:
            return names
        names = spread


def flipped(rng: np.random.Generator, hashes: np.ndarray, most: int) -> np.ndarray:
    """Each hash with up to so many bits changed."""
    masks = [sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, most + 1), replace=False)) for _ in hashes]
    return hashes ^ np.array(masks, np.uint64)


@pytest.mark.parametrize("flat", [0, 10_000])
@pytest.mark.parametrize("distance", [0, 1, 5, 6, 9, 16])
def test_hashes_are_grouped_as_by_the_twin(monkeypatch, flat, distance):
    monkeypatch.setattr(near_duplicates, "FLAT_HASHES", flat)
    monkeypatch.setattr(near_duplicates, "_QUERIES", 32)
    rng = np.random.default_rng(distance)
    few = rng.integers(0, 2**64, 40, np.uint64)
    hashes = flipped(rng, few[rng.integers(0, len(few), 150)], distance + 2)
    bits = np.array([[int(a ^ b).bit_count() for b in hashes] for a in hashes])
    found = groups_of_hashes(hashes, distance)
    assert found.tolist() == twin(bits <= distance)
    assert 10 < len(set(found.tolist())) < 150
    order = rng.permutation(len(hashes))
    again = groups_of_hashes(hashes[order], distance)
    assert {frozenset(order[again == name].tolist()) for name in again} == {
        frozenset(np.flatnonzero(found == name).tolist()) for name in found
    }


def test_groups_are_chains_of_neighbours():
    ladder = np.array([0, 0b11, 0b1111, 0b111111, 2**40 - 1], np.uint64)
    assert groups_of_hashes(ladder, 2).tolist() == [0, 0, 0, 0, 4]
    assert groups_of_hashes(ladder[[0, 2, 3, 4]], 2).tolist() == [0, 1, 1, 3]
    assert groups_of_hashes(np.empty(0, np.uint64), 6).tolist() == []


def test_many_copies_of_one_image_cost_no_more_than_one():
    hashes = np.repeat(np.array([5, 2**40 - 1], np.uint64), 300_000)
    assert (groups_of_hashes(hashes, 6) == np.repeat([0, 300_000], 300_000)).all()


@pytest.mark.parametrize("finds", [1, 2**24])
@pytest.mark.parametrize("flat", [0, 10_000])
def test_features_are_grouped_as_by_the_twin(monkeypatch, flat, finds, tmp_path):
    monkeypatch.setattr(near_duplicates, "_FINDS", finds)
    monkeypatch.setattr(near_duplicates, "FLAT_FEATURES", flat)
    monkeypatch.setattr(near_duplicates, "_FEATURE_QUERIES", 64)
    rng = np.random.default_rng(0)
    few = rng.standard_normal((150, 24))
    made = np.concatenate([few, few + 0.2 * rng.standard_normal(few.shape), few[:20] * 3])
    np.save(tmp_path / "features.npy", made.astype(np.float16))
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    unit = features / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    found = groups_of_features(features, 0.95)
    assert found.tolist() == twin(unit @ unit.T >= 0.95)
    assert found[300:].tolist() == list(range(20))  # length does not matter
    assert 150 <= len(set(found.tolist())) < 200


def test_few_or_no_features_are_grouped():
    assert groups_of_features(np.empty((0, 1), np.float16), 0.9).tolist() == []
    assert groups_of_features(np.ones((1, 4), np.float16), 0.9).tolist() == [0]


def test_features_without_a_direction_are_in_no_group():
    features = np.array([[0, 0], [1, 0], [np.nan, 1], [np.inf, 1], [2, 0], [0, 1]], np.float16)
    assert groups_of_features(features, 0.9).tolist() == [-1, 1, -1, -1, 1, 5]
    assert groups_of_features(features[[0, 2]], 0.9).tolist() == [-1, -1]


def test_equal_features_cost_no_more_than_one(monkeypatch):
    searched = []
    unit = near_duplicates._unit
    monkeypatch.setattr(near_duplicates, "_unit", lambda rows: searched.append(len(rows)) or unit(rows))
    features = np.tile(np.array([[0, 1], [1, 0], [0, 1]], np.float16), (50_000, 1))
    assert (groups_of_features(features, 0.9) == np.tile([0, 1, 0], 50_000)).all()
    assert sum(searched) == 4  # two added, two looked up
