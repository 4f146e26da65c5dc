"""What many tests share: fixture checkpoints of published models, and a folder of small pictures."""

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import that reads it; programs that tests start inherit it

import numpy as np
import pytest
from PIL import Image

from src.curation.scorer import Scorer

LEGACY = Path(__file__).parent / "fixtures" / "legacy_reward"
PUBLISHED_VLMS = Path(__file__).parent / "fixtures" / "vlm_adapters"


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


@pytest.fixture(scope="session")
def published_vlms() -> Path:
    """Folder with tiny random checkpoints of four model families in their layouts, and what their loaders compute."""
    return PUBLISHED_VLMS


@pytest.fixture(scope="session")
def converted_vlm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``(family, compat="intended")`` to the converted checkpoint of that family, made once."""
    from src.model.vlm.convert import convert  # not for every session

    @cache
    def converted(family: str, compat: str = "intended") -> Path:
        source = PUBLISHED_VLMS / family
        base = source / "text_base"
        target = tmp_path_factory.mktemp(family) / compat
        return convert(
            source / "checkpoint",
            target,
            tower=source / "stock_tower",
            text_base=base if base.exists() else None,
            compat=compat,
        )

    return converted


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a.png ... h.png of different sizes and contents."""
    rng = np.random.default_rng(0)
    for name in "abcdefgh":
        height, width = rng.integers(40, 120, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path
