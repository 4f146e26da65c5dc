"""Teach the vision tower what made scenes hold, and where, from their exact ground truth.

A caption names a few facts of a scene and says nothing of the place of each; learning colours, numbers and relations
from captions alone takes far more images than two CPU cores can read. Here every image token learns what lies in its
cell, and the mean of all tokens, which attention can read too, learns the facts. The heads are thrown away afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.dataset.collate import PairEncoder
from src.dataset.scene_canvas import COLOURS
from src.dataset.scene_facts import RELATIONS, Facts
from src.dataset.scene_kinds import KINDS
from src.dataset.scenes import SceneObject
from src.model.qwen_reward import Qwen2Reward

_COUNTED = sorted({name for kind in KINDS.values() for name in kind.counted})
_LANDMARKS = sorted({name for kind in KINDS.values() for name in kind.landmarks})
_EXTRAS = sorted({name for kind in KINDS.values() for name in kind.extras})
_COLOURS = list(COLOURS)
THINGS = ("nothing", *sorted({*_COUNTED, *_LANDMARKS, *_EXTRAS}))
FACTS: dict[str, Sequence[Any]] = {
    "kind": list(KINDS),
    "category": _COUNTED,
    "count": range(1, 7),
    "colour": _COLOURS,
    "landmark": _LANDMARKS,
    "landmark_colour": _COLOURS,
    "relation": RELATIONS,
}
IGNORED = -100  # what torch's cross-entropy leaves out
# Weights that bring the terms to like size at the start; cells teach most.
_WEIGHTS = {"things": 1.0, "colours": 1.0, "shares": 10.0, "extras": 3.0, **dict.fromkeys(FACTS, 0.5)}

Labels = dict[str, np.ndarray]


def scene_labels(facts: Facts, objects: Sequence[SceneObject], cells: int, side: int) -> Labels:
    """Return what the heads should say of a scene.

    Args:
        cells: image tokens along a side.
        side: length in pixels of the picture that the objects' boxes refer to.

    Returns:
        ``facts`` (7,) index of each of :data:`FACTS`; ``extras`` (E,) 0 or 1; and per cell, row after row, ``things``
        the object that covers most of it (at least 15 %, else 0), ``colours`` that object's colour (IGNORED if it has
        none), ``shares`` the shares of counted objects in it, which add up to their number over all cells.
    """
    edges = np.arange(cells) * side / cells
    things, colours = np.zeros((cells, cells), np.int64), np.full((cells, cells), IGNORED)
    shares, most = np.zeros((cells, cells), np.float32), np.full((cells, cells), 0.15 * (side / cells) ** 2)
    for thing in objects:
        if thing.category == "road":  # its box is no guide to where it lies
            continue
        x1, y1, x2, y2 = thing.box
        across = (np.minimum(edges + side / cells, x2) - np.maximum(edges, x1)).clip(0)
        down = (np.minimum(edges + side / cells, y2) - np.maximum(edges, y1)).clip(0)
        area = down[:, None] * across[None]
        if thing.role == "counted":
            shares += (area / max(1, (x2 - x1) * (y2 - y1))).astype(np.float32)
        here = area > most
        most = np.maximum(most, area)
        things[here] = THINGS.index(thing.category)
        colours[here] = _COLOURS.index(thing.colour) if thing.colour else IGNORED
    return {
        "facts": np.array([options.index(getattr(facts, name)) for name, options in FACTS.items()]),
        "extras": np.array([name in facts.extras for name in _EXTRAS], np.float32),
        "things": things.ravel(),
        "colours": colours.ravel(),
        "shares": shares.ravel(),
    }


def no_labels(cells: int) -> Labels:
    """Return the labels of an image that is no scene: it teaches the heads nothing."""
    blank = np.full(cells * cells, IGNORED)
    return {
        "facts": np.full(len(FACTS), IGNORED),
        "extras": np.zeros(len(_EXTRAS), np.float32),
        "things": blank,
        "colours": blank,
        "shares": np.zeros(cells * cells, np.float32),
    }


class GroundingHeads(nn.Module):
    """One linear head for each thing to be known, on image tokens or on their mean."""

    def __init__(self, hidden: int):
        super().__init__()
        sizes = {"things": len(THINGS), "colours": len(_COLOURS), "shares": 1, "extras": len(_EXTRAS)}
        sizes.update({name: len(options) for name, options in FACTS.items()})
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, size) for name, size in sizes.items()})

    def forward(self, images: Sequence[Tensor], labels: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss (a scalar) and the share of right answers to each question, 0..1.

        Args:
            images: per image its tokens from the vision tower, ``(cells * cells, hidden)`` for a scene.
            labels: :func:`scene_labels` of each image, stacked; :func:`no_labels` for images that are no scenes.
        """
        scene = labels["facts"][:, 0] != IGNORED
        tokens = torch.stack([image for image, one in zip(images, scene.tolist(), strict=True) if one]).float()
        labels = {name: label[scene] for name, label in labels.items()}
        mean = tokens.mean(1)
        losses, right = {}, {}
        for name in ("things", "colours"):
            logits, label = self.heads[name](tokens).flatten(0, 1), labels[name].flatten()
            losses[name] = F.cross_entropy(logits, label, ignore_index=IGNORED)
            right[name] = (logits.argmax(-1) == label)[label > 0 if name == "things" else label >= 0].float().mean()
        shares = self.heads["shares"](tokens).squeeze(-1)
        losses["shares"] = F.mse_loss(shares, labels["shares"])
        right["shares"] = (shares.sum(1).round() == labels["shares"].sum(1).round()).float().mean()
        extras = self.heads["extras"](mean)
        losses["extras"] = F.binary_cross_entropy_with_logits(extras, labels["extras"])
        right["extras"] = ((extras > 0) == (labels["extras"] > 0)).float().mean()
        for i, name in enumerate(FACTS):
            logits, label = self.heads[name](mean), labels["facts"][:, i]
            losses[name], right[name] = F.cross_entropy(logits, label), (logits.argmax(-1) == label).float().mean()
        return torch.stack([_WEIGHTS[name] * loss for name, loss in losses.items()]).sum(), right


class GroundingModel(nn.Module):
    """The vision tower of a score model under :class:`GroundingHeads`."""

    def __init__(self, backbone: Qwen2Reward, heads: GroundingHeads):
        super().__init__()
        self.backbone, self.heads = backbone, heads

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return ``loss`` and ``right``, as the heads do."""
        loss, right = self.heads(self.backbone.encode_images(pixel_values, image_grid_thw), labels)
        return {"loss": loss, "right": right}


@dataclass
class GroundingCollator:
    """Batches ``{"image", "labels"}``."""

    encoder: PairEncoder

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the inputs of :meth:`GroundingModel.forward`."""
        images = [self.encoder.image(sample["image"]) for sample in samples]
        return {
            "pixel_values": torch.cat([image.pixel_values for image in images]),
            "image_grid_thw": torch.tensor([image.grid for image in images]),
            "labels": stack_labels([sample["labels"] for sample in samples]),
        }


def stack_labels(labels: Sequence[Labels]) -> dict[str, Tensor]:
    """Stack the labels of several images, name by name."""
    return {name: torch.from_numpy(np.stack([one[name] for one in labels])) for name in labels[0]}
