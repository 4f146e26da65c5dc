"""The published layouts of four families, tiny and random, and what their published loaders compute on them."""

import json
from pathlib import Path

import pytest

from src.model.vlm.convert import convert

VLM = Path(__file__).parents[2] / "fixtures" / "vlm_adapters"
