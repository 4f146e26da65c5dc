"""Teach the two towers of a score model which texts belong to which images, before it learns to prefer.

Starting the ranking loss from random weights barely moves; from towers trained contrastively it does. Text features are
the language model's last token on the bare text, image features the mean of the vision tower's tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer

from src.dataset.collate import PairEncoder, pad_right
from src.model.qwen_reward import Qwen2Reward
from src.training.clip_loss import masked_logits, symmetric_loss
from src.training.grounding import GroundingHeads, stack_labels


class ContrastiveModel(nn.Module):
    """A score model's towers with a projection each and a learned temperature; only the towers are kept.

    Args:
        heads: keep teaching these beside, so that the vision tower does not unlearn where things are.
        grounding_weight: weight of their loss.
    """

    def __init__(
        self, backbone: Qwen2Reward, dim: int = 192, heads: GroundingHeads | None = None, grounding_weight: float = 0.0
    ):
        super().__init__()
        hidden = backbone.config.get_text_config().hidden_size
        self.backbone = backbone
        self.image_projection = nn.Linear(hidden, dim, bias=False)
        self.text_projection = nn.Linear(hidden, dim, bias=False)
        self.heads, self.grounding_weight = heads, grounding_weight
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # ln(1 / 0.07), as CLIP starts (Radford et al. 2021)

    def image_features(self, tokens: Sequence[Tensor]) -> Tensor:
        """Return ``(images, dim)`` unit vectors from the image tokens of each image."""
        pooled = torch.stack([one.mean(0) for one in tokens])
        return F.normalize(self.image_projection(pooled).float(), dim=-1)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return ``(texts, dim)`` unit vectors of right-padded texts."""
        hidden = self.backbone.model.language_model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        last = hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(-1) - 1]
        return F.normalize(self.text_projection(last).float(), dim=-1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        image_grid_thw: Tensor,
        text_of: Tensor,
        labels: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        """Return the symmetric InfoNCE ``loss``, the heads' included, and the ``logits`` (images, texts).

        The first texts are the images' own, in order; any further ones are wrong for all images.

        Args:
            text_of: ``(texts,)`` number of each distinct text; equal texts are not negatives of each other's images.
            labels: what the heads are taught (see :mod:`src.training.grounding`).
        """
        tokens = self.backbone.encode_images(pixel_values, image_grid_thw)
        image = self.image_features(tokens)
        text = self.text_features(input_ids, attention_mask)
        same = text_of[: len(image), None] == text_of[None]
        logits = masked_logits(image, text, self.log_scale.exp().clamp(max=100), same)
        loss = symmetric_loss(logits)
        if self.heads is not None and labels is not None:
            loss = loss + self.grounding_weight * self.heads(tokens, labels)[0]
        return {"loss": loss, "logits": logits}


@dataclass
class ContrastiveCollator:
    """Batches ``{"image", "text", "hard": wrong text, "labels"}``; the latter two may lack. Wrong texts come last."""

    encoder: PairEncoder

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the inputs of :meth:`ContrastiveModel.forward`."""
        tokenizer = self.encoder.processor.tokenizer
        images = [self.encoder.image(sample["image"]) for sample in samples]
        texts = [sample["text"] for sample in samples] + [s["hard"] for s in samples if s.get("hard")]
        rows = tokenizer([text + tokenizer.eos_token for text in texts])["input_ids"]
        input_ids, mask = pad_right(rows, tokenizer.pad_token_id)
        numbers: dict[str, int] = {}
        labels = {"labels": stack_labels([s["labels"] for s in samples])} if "labels" in samples[0] else {}
        return {
            **labels,
            "input_ids": input_ids,
            "attention_mask": mask,
            "pixel_values": torch.cat([image.pixel_values for image in images]),
            "image_grid_thw": torch.tensor([image.grid for image in images]),
            "text_of": torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts]),
        }


class TowerTrainer(Trainer):
    """Trainer for models that compute their own loss."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:  # type: ignore[override]
        """The model's own loss of the batch."""
        output = model(**inputs)
        return (output["loss"], output) if return_outputs else output["loss"]
