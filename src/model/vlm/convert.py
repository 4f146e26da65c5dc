"""Published checkpoints of remote-sensing models as folders that transformers loads without remote code.

Importing this module registers LHRS-Bot-Nova with transformers (see :mod:`src.model.vlm.lhrs`).
"""

import json
from pathlib import Path
from typing import Any

from src.errors import JobError
from src.model.checkpoint import new_folder
from src.model.vlm.lhrs_layout import CHECKPOINT, convert_lhrs
from src.model.vlm.llava_layout import FAMILIES, convert_llava
from src.model.vlm.templates import Compat


def convert(
    source: str | Path,
    target: str | Path,
    *,
    tower: str | Path | None = None,
    text_base: str | Path | None = None,
    text_lora: str | Path | None = None,
    without_lora: bool = False,
    compat: Compat = "intended",
) -> Path:
    """Write ``target``, which appears once it is whole.

    Args:
        source: GeoChat, SkySenseGPT or VHM: a folder with ``config.json``; LHRS-Bot-Nova: ``FINAL.pt`` or its folder.
        target: must be new or empty.
        tower: folder of the vision tower (see :func:`convert_llava` and :func:`convert_lhrs`).
        text_base, text_lora, without_lora: LHRS-Bot-Nova's (see :func:`convert_lhrs`).
        compat: ``published`` to get what the published loaders compute, faults included.

    Raises:
        JobError: ``target`` holds something, or the checkpoint is none of these, damaged or not whole.
    """
    source, target = Path(source), Path(target)
    if not source.exists():
        raise JobError(f"there is no {source}")
    is_lhrs = source.is_file() or (source / CHECKPOINT).is_file()
    if not is_lhrs and (text_base or text_lora or without_lora):
        raise JobError(f"text_base, text_lora and without_lora are for LHRS-Bot-Nova; {source} has no {CHECKPOINT}")
    shown = Path(tower) if tower is not None else None
    with new_folder(target) as partial:
        if is_lhrs:
            base, lora = (Path(given) if given is not None else None for given in (text_base, text_lora))
            convert_lhrs(source, partial, base, shown, lora, without_lora, compat)
        else:
            convert_llava(source, partial, shown, compat)
    return target


def is_published(path: str | Path) -> bool:
    """Whether a folder is in a layout that :func:`convert` takes."""
    if (Path(path) / CHECKPOINT).is_file():
        return True
    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") in FAMILIES


def is_converted(config: Any) -> bool:
    """Whether the configuration of a model is one that :func:`convert` wrote."""
    return hasattr(config, "compat")
