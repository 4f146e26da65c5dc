"""Make record ids unique, exactly, in eight bytes of memory a row."""

import hashlib
from array import array
from collections.abc import Iterable

import numpy as np


class UniqueIds:
    """Tells a repeated id from a first one.

    One pass over all ids keeps a 64-bit hash of each. Only ids whose hash occurs more than once are then compared
    as strings, so that a collision of hashes changes nothing. Memory: 8 bytes a row and the repeated ids.
    """

    def __init__(self, ids: Iterable[str]):
        """``ids``: every id of the data set, once for each of its rows; empty ones do not count."""
        self._hashes = np.asarray(array("Q", (_hash(name) for name in ids if name)), dtype=np.uint64)
        self._hashes.sort()
        self._repeated = set(self._hashes[1:][self._hashes[1:] == self._hashes[:-1]].tolist())
        self._seen: set[str] = set()

    @property
    def all_differ(self) -> bool:
        """Whether no id occurs twice, so that earlier rows need not be claimed before later ones."""
        return not self._repeated

    def claim(self, name: str) -> bool:
        """Note an id of the data set, in row order; True when an earlier row has claimed it."""
        if not self._repeated or _hash(name) not in self._repeated:
            return False
        seen = name in self._seen
        self._seen.add(name)
        return seen

    def unused(self, name: str, ending: str) -> str:
        """``name``, with ``ending`` added until it is the id of no row."""
        while self._occurs(name):
            name += ending
        return name

    def _occurs(self, name: str) -> bool:
        if not len(self._hashes):
            return False
        wanted = np.uint64(_hash(name))
        place = int(np.searchsorted(self._hashes, wanted))
        return place < len(self._hashes) and bool(self._hashes[place] == wanted)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
