"""Random views of an overhead image, which has no up or down."""

import numpy as np


def turned_crop(image: np.ndarray, rng: np.random.Generator, least: float = 0.8) -> np.ndarray:
    """One of the eight turns and flips of a random crop of ``(height, width, 3)`` uint8, ``least`` to 1 of each side.

    Not for captions that speak of left, right, north or south, which a turn makes untrue.
    """
    height, width = image.shape[:2]
    share = rng.uniform(least, 1)
    h, w = int(height * share), int(width * share)
    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    image = np.rot90(image[y : y + h, x : x + w], int(rng.integers(4)))
    return np.ascontiguousarray(image[:, ::-1] if rng.random() < 0.5 else image)
