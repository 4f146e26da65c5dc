"""Where a score model's weights come from: key layouts, names of what is missing, and the attention they run on.

Three layouts are read (and only ``ours`` is written):

========== ============================================================= =================
layout     keys                                                          position scheme
========== ============================================================= =================
ours       ``model.visual.*``, ``model.language_model.*``, ``reward_head`` ``mrope``
published  ``visual.*``, ``model.layers.*``, ``reward_head``              ``sequential``
backbone   a plain Qwen2-VL checkpoint, old or new keys, no reward head   ``mrope``
========== ============================================================= =================

The published class computed three-axis (M-RoPE) positions in the first forward of an instance and plain ``0..L-1``
positions ever after, so its weights were trained under plain positions; that is why the scheme follows the layout.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from transformers.utils import cached_file, is_flash_attn_2_available

from src.errors import JobError

Layout = Literal["ours", "published", "backbone"]
PositionScheme = Literal["mrope", "sequential"]

HEAD = "reward_head.weight"
# Applied in this order to every source key; keys of our own layout match neither pattern.
KEY_MAPPING = {
    r"^visual\.": "model.visual.",
    r"^model\.(?!visual\.|language_model\.)": "model.language_model.",
}

WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

log = logging.getLogger(__name__)


def locate(path: str | Path) -> str:
    """Return a model path as it is, or below the project's root where only that exists (``assets/nano/scorer``)."""
    below_root = Path(__file__).resolve().parents[2] / path
    return str(below_root) if not Path(path).exists() and below_root.exists() else str(path)


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill that has a temporary name, and gets its own when that went well.

    Raises:
        JobError: there is something of that name, other than an empty folder.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise JobError(f"{folder} holds something already; choose another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def checkpoint_keys(path: str | Path, **hub: str | bool | None) -> set[str]:
    """Return the weight names stored in a checkpoint, reading headers only where the format allows.

    Args:
        path: folder, or hub id.
        hub: what :func:`transformers.utils.cached_file` takes (``revision``, ``token``, ``subfolder`` ...).

    Raises:
        JobError: no such folder, or no weights in it.
    """
    if Path(path).is_file():
        raise JobError(f"model path {str(path)!r} is a file; give the folder that holds config.json")
    quiet = {"_raise_exceptions_for_missing_entries": False, **hub}
    try:
        for name in WEIGHT_INDEXES:
            if index := cached_file(str(path), name, **quiet):
                return set(json.loads(Path(index).read_text())["weight_map"])
        for name in WEIGHT_FILES:
            if weights := cached_file(str(path), name, **quiet):
                return _stored_keys(Path(weights))
    except OSError as error:
        raise JobError(f"no model at {str(path)!r}: not a folder here, and not to be had from the hub") from error
    if not Path(path).is_dir():
        raise JobError(f"no model at {str(path)!r}: not a folder here, nor within reach of the hub")
    raise JobError(f"{str(path)!r} holds no weights (looked for {', '.join(WEIGHT_INDEXES + WEIGHT_FILES)})")


def _stored_keys(weights: Path) -> set[str]:
    if weights.suffix == ".safetensors":
        with safe_open(weights, "pt") as stored:
            return set(stored.keys())
    return set(torch.load(weights, map_location="meta", weights_only=True))


def layout_of(keys: Iterable[str]) -> Layout:
    """Tell which of the three layouts a set of weight names is in."""
    names = set(keys)
    if HEAD not in names:
        return "backbone"
    return "published" if any(name.startswith("visual.") for name in names) else "ours"


def default_position_scheme(layout: Layout) -> PositionScheme:
    """Return the position scheme that weights of this layout were trained under."""
    return "sequential" if layout == "published" else "mrope"


def refuse_if_incomplete(path: str | Path, layout: Layout, missing: Iterable[str]) -> None:
    """Raise :class:`JobError` if any weight other than a wanted new head was not in the checkpoint.

    transformers fills such weights with random numbers and only prints a table: a wrong prefix would score by chance.
    """
    allowed = {HEAD} if layout == "backbone" else set()
    lost = sorted(set(missing) - allowed)
    if lost:
        shown = ", ".join(lost[:8]) + (f", and {len(lost) - 8} more" if len(lost) > 8 else "")
        raise JobError(f"checkpoint {str(path)!r} leaves {len(lost)} weights uninitialised: {shown}")


@cache
def usable_attention(wanted: str | None, on_gpu: bool, half: bool = True) -> str:
    """Return the attention implementation to load with.

    ``None`` or ``flash_attention_2`` becomes ``flash_attention_2`` where the package is there, the model goes to a GPU
    and is not in float32 (``half``), and ``sdpa`` elsewhere; a fall-back is logged once a process. Other names pass.
    """
    if wanted not in (None, "flash_attention_2"):
        return str(wanted)
    if on_gpu and half and is_flash_attn_2_available():
        return "flash_attention_2"
    if wanted or on_gpu:
        why = "the model is not on a GPU"
        if on_gpu:
            why = "package flash-attn is not installed" if half else "FlashAttention takes no float32"
        log.warning("attention: %s, so PyTorch's SDPA is used", why)
    return "sdpa"
