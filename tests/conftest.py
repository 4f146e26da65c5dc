"""What many tests share: the fixture checkpoint of the published class, and a folder of small pictures."""

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import that reads it; programs that tests start inherit it

import numpy as np
import pytest
from PIL import Image

from src.curation.scorer import Scorer

LEGACY = Path(__file__).parent / "fixtures" / "legacy_reward"


@pytest.fixture(scope="session")
def legacy() -> Path:
    """Folder with a tiny random checkpoint in the published layout and what the published class computes on it."""
    return LEGACY


@pytest.fixture(scope="session")
def legacy_cases() -> dict:
    return json.loads((LEGACY / "cases.json").read_text())


@pytest.fixture(scope="session")
def tiny_scorer() -> Scorer:
    """A scorer with random weights: small, quick, and as sensitive to its input as can be."""
    return Scorer.from_pretrained(LEGACY / "checkpoint", device="cpu", workers=2)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a.png ... h.png of different sizes and contents."""
    rng = np.random.default_rng(0)
    for name in "abcdefgh":
        height, width = rng.integers(40, 120, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path
