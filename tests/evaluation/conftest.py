"""A tiny random CLIP that the tests of CLIP evaluation share."""

from pathlib import Path

import pytest

from src.model.clip import Clip, load_clip
from tests.tiny_clip import save_tiny_clip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def clip(tiny) -> Clip:
    return load_clip(tiny, device="cpu")
