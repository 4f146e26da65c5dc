"""Train the score model to prefer the chosen answer, with Hugging Face's Trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from src.dataset.collate import PairEncoder, pad_right
from src.model.ranking import ranking_loss


@dataclass
class PreferenceCollator:
    """Turns preference groups into one batch, every image encoded once for all answers to it.

    A group is ``{"image": ImageSource, "question": str, "chosen": str, "rejected": [str, ...]}``; all groups of a batch
    have the same number R of rejected answers. Rows are group after group, chosen first.
    """

    encoder: PairEncoder

    def __call__(self, groups: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return model inputs of ``groups * (1 + R)`` rows, with ``pixel_values`` and ``image_grid_thw`` per group."""
        images = [self.encoder.image(group["image"]) for group in groups]
        prompts = [
            self.encoder.prompt({"text": text, "question": group.get("question", "")}, [image])
            for group, image in zip(groups, images, strict=True)
            for text in (group["chosen"], *group["rejected"])
        ]
        ids = self.encoder.token_ids(prompts)
        for row in ids:
            if isinstance(row, Exception):
                raise row
        input_ids, mask = pad_right(ids, self.encoder.processor.tokenizer.pad_token_id)
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "pixel_values": torch.cat([image.pixel_values for image in images]),
            "image_grid_thw": torch.tensor([image.grid for image in images]),
        }


class RewardTrainer(Trainer):
    """Trainer whose loss is the mean ``-logsigmoid(chosen - rejected)`` over all rejected answers of all groups."""

    def compute_loss(self, model, inputs, return_outputs=False, **_: Any):
        """Loss of a batch from :class:`PreferenceCollator`; in evaluation also ``{"values": (groups, 1 + R)}``."""
        scores = self._scores(model, inputs)
        chosen = scores[:, :1].expand(-1, scores.shape[1] - 1)
        loss = ranking_loss(torch.stack([chosen, scores[:, 1:]], dim=-1)).mean()
        return (loss, {"values": scores}) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):  # noqa: ARG002
        """Return loss, scores ``(groups, 1 + R)``, and labels of the same shape that are never read."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        return loss, outputs["values"], torch.zeros_like(outputs["values"])

    @staticmethod
    def _scores(model, inputs: Mapping[str, Tensor]) -> Tensor:
        groups = len(inputs["image_grid_thw"])
        answers = len(inputs["input_ids"]) // groups
        features = model.encode_images(inputs["pixel_values"], inputs["image_grid_thw"])
        shared = torch.cat([feature.repeat(answers, 1) for feature in features])
        output = model(
            inputs["input_ids"],
            inputs["attention_mask"],
            image_grid_thw=inputs["image_grid_thw"].repeat_interleave(answers, 0),
            image_embeds=shared,
            return_loss=False,
        )
        return output.values.view(groups, answers)


def ranking_metrics(evaluation) -> dict[str, float]:
    """Accuracy (chosen above rejected, ties wrong), margin, and the range of scores, for ``compute_metrics``."""
    scores = torch.as_tensor(evaluation.predictions)
    gap = scores[:, :1] - scores[:, 1:]
    return {
        "accuracy": (gap > 0).float().mean().item(),
        "margin": gap.mean().item(),
        "score_min": scores.min().item(),
        "score_mean": scores.mean().item(),
        "score_max": scores.max().item(),
    }
