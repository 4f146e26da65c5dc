"""The embedded base model, whose answers are captions, behind the back end that runs here; and small random images."""

import numpy as np
import pytest
from PIL import Image

from src.evaluation.backends.transformers_model import TransformersBackend, TransformersOptions

BASE = "assets/nano/base"


@pytest.fixture(scope="session")
def backend() -> TransformersBackend:
    return TransformersBackend(BASE, TransformersOptions(device="cpu", batch_size=4, window=8, progress=False))


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Of sizes that the model sees as 4, 16, 8 and 16 tokens."""
    rng = np.random.default_rng(0)
    sizes = [(56, 56), (112, 112), (112, 56), (150, 150)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
