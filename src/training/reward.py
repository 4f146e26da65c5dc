"""Train the score model to prefer the chosen answer, with Hugging Face's Trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from src.dataset.collate import PairEncoder
from src.errors import RecordError
from src.model.packing import pack
from src.model.ranking import choice_loss, pooled_loss


@dataclass
class PreferenceCollator:
    """Turns preference groups into one batch, every image encoded once for all answers to it.

    A group is ``{"image": ImageSource, "question": str, "chosen": str, "rejected": [str, ...]}``; all groups of a batch
    have the same number R of rejected answers. The prompt, its image included, is encoded once for all of them.
    """

    encoder: PairEncoder

    def __call__(self, groups: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return model inputs with one packed row a group (see :mod:`src.model.packing`)."""
        if len({len(group["rejected"]) for group in groups}) != 1:
            raise ValueError("groups of one batch must have the same number of rejected answers")
        images = [self.encoder.image(group["image"]) for group in groups]
        prompts = [
            self.encoder.prompt({"text": text, "question": group.get("question", "")}, [image])
            for group, image in zip(groups, images, strict=True)
            for text in (group["chosen"], *group["rejected"])
        ]
        ids: list[list[int]] = []
        for row in self.encoder.token_ids(prompts):
            if isinstance(row, RecordError):
                raise row
            ids.append(row)
        size = len(ids) // len(groups)
        packed = [ids[start : start + size] for start in range(0, len(ids), size)]
        input_ids, segment_ids = pack(packed, self.encoder.processor.tokenizer.pad_token_id)
        return {
            "input_ids": input_ids,
            "segment_ids": segment_ids,
            "pixel_values": torch.cat([image.pixel_values for image in images]),
            "image_grid_thw": torch.tensor([image.grid for image in images]),
        }


class RewardTrainer(Trainer):
    """Trainer whose loss is the likelihood of the chosen answer among all answers of its group.

    Args:
        pooled_weight: weight of :func:`src.model.ranking.pooled_loss`, which compares answers across prompts.
        text_weight: weight of predicting the chosen answer token by token through the input embeddings, which teaches
            the language model to look at the image by every word and keeps its features general (Yang et al. 2024,
            "Regularizing Hidden States Enables Learning Generalizable Reward Model for LLMs").
        args, kwargs: as for :class:`transformers.Trainer`.
    """

    def __init__(self, *args: Any, pooled_weight: float = 0.0, text_weight: float = 0.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.pooled_weight = pooled_weight
        self.text_weight = text_weight

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:  # type: ignore[override]
        """Loss of a batch from :class:`PreferenceCollator`; in evaluation also ``{"values": (groups, 1 + R)}``."""
        output = model(**inputs, return_loss=False)
        scores = output.values.view(len(inputs["input_ids"]), -1)
        loss = choice_loss(scores).mean() + self.pooled_weight * pooled_loss(scores)
        if self.text_weight and model.training:
            embeddings = self.accelerator.unwrap_model(model).get_input_embeddings().weight
            loss = loss + self.text_weight * _text_loss(output.logits, embeddings, inputs)
        return (loss, {"values": scores}) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):  # noqa: ARG002
        """Return loss, scores ``(groups, 1 + R)``, and labels of the same shape that are never read."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        return loss, outputs["values"], torch.zeros_like(outputs["values"])


def _text_loss(hidden: Tensor, embeddings: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the chosen answers' tokens, each predicted from the token before it."""
    chosen = inputs["segment_ids"][:, 1:] == 1
    logits = hidden[:, :-1][chosen] @ embeddings.T
    return torch.nn.functional.cross_entropy(logits.float(), inputs["input_ids"][:, 1:][chosen])


def ranking_metrics(evaluation) -> dict[str, float]:
    """Accuracy in a group and over all groups (``auc``; ties wrong), margin, and range of scores."""
    scores = torch.as_tensor(evaluation.predictions)
    gap = scores[:, :1] - scores[:, 1:]
    return {
        "accuracy": (gap > 0).float().mean().item(),
        "auc": (scores[:, :1] > scores[:, 1:].flatten()[None]).float().mean().item(),
        "margin": gap.mean().item(),
        "score_min": scores.min().item(),
        "score_mean": scores.mean().item(),
        "score_max": scores.max().item(),
    }
