"""The vision towers of converted checkpoints: their shapes, their weights, and their tables of positions."""

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.errors import JobError
from src.model.vlm.weights import Weights, stored_weights

# Shapes of the towers that the published checkpoints name without saying more about them.
KNOWN_TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "google/siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}
_PREFIX = re.compile(r"^(?:vision_model\.|encoder\.vision_model\.)")
_OF_TEXT = re.compile(r"^(?:text_model\.|text_projection|visual_projection|logit_scale|logit_bias)")
# Counted positions, which old versions stored.
_COMPUTED = re.compile(r"embeddings\.position_ids$")
POSITIONS = "embeddings.position_embedding.weight"


def tower_shape(name: str, folder: Path | None) -> dict[str, Any]:
    """The vision configuration of a tower, from its folder if one is given, else by its name.

    Raises:
        JobError: no folder is given and the name is not known, or the folder has no such configuration.
    """
    if folder is None:
        known = {key for key in KNOWN_TOWERS if key.rpartition("/")[2] == name.rpartition("/")[2]}
        if not known:
            raise JobError(f"the vision tower {name!r} is not known here; give its folder as --tower")
        return dict(KNOWN_TOWERS[known.pop()])
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{folder} holds no configuration of a vision tower: {error}") from error
    shape = dict(config.get("vision_config", config))
    if "hidden_size" not in shape:
        raise JobError(f"{folder / 'config.json'} describes no vision tower: it has no hidden_size")
    kind = str(shape.get("model_type") or config["model_type"]).removesuffix("_vision_model")
    return shape | {"model_type": f"{kind}_vision_model"}


def tower_weights(folder: Path) -> Weights:
    """The weights of a tower, named as transformers names them, from a folder that may hold a text tower too."""
    stored = stored_weights(folder)
    return bare_tower({name: weight for name, weight in stored.items() if not _OF_TEXT.match(name)})


def bare_tower(weights: Weights) -> Weights:
    """The same without the prefix that older layouts have and without what is no weight."""
    return {_PREFIX.sub("", name): weight for name, weight in weights.items() if not _COMPUTED.search(name)}


def with_positions(weights: Weights, positions: int) -> Weights:
    """The weights of a CLIP tower with a table of so many positions, the class's own the first of them."""
    table = weights.get(POSITIONS)
    if table is None or table.shape[0] == positions:
        return weights
    shape = (positions, table.shape[1])
    return weights | {POSITIONS: table.changed(partial(resized_positions, positions=positions), shape)}


def resized_positions(table: Tensor, positions: int) -> Tensor:
    """A table ``(1 + side^2, width)`` for another grid: corners stay corners, bicubic between; the first row stays.

    Raises:
        JobError: either grid is no square.
    """
    old, new = math.isqrt(len(table) - 1), math.isqrt(positions - 1)
    if old * old != len(table) - 1 or new * new != positions - 1:
        raise JobError(f"{len(table)} positions cannot become {positions}: both must be a square plus 1")
    grid = table[1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=True)
    rows = grid.permute(0, 2, 3, 1).reshape(new * new, -1).to(table.dtype)
    return torch.cat([table[:1], rows])
