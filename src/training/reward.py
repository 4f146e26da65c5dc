"""Train the score model to prefer the chosen answer, with Hugging Face's Trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from src.dataset.collate import EncodedImage, PairEncoder
from src.errors import JobError, RecordError
from src.model.packing import pack
from src.model.ranking import choice_loss, pairwise_loss, pooled_loss, ranking_loss
from src.training.run import ShardedTrainer

Loss = Literal["pairwise", "choice", "plackett_luce"]
_LOGGED = ("ranking_accuracy", "margin", "score_min", "score_mean", "score_max", "tokens")


@dataclass
class PreferenceCollator:
    """Turns preference groups into one batch, every image encoded once for all answers to it.

    A group is ``{"images": [ImageSource, ...], "question": str, "chosen": str, "rejected": [str, ...],
    "source": str}``, with any number of images (none, too) and of rejected answers; ``question`` and ``source`` may
    lack. The prompt, its images included, runs through the model once for all answers.

    Attributes:
        source_weights: weight of a source's groups in the loss, 1 for those not named.
        sources: names of the sources met, in the order of their numbers in a batch.
    """

    encoder: PairEncoder
    source_weights: Mapping[str, float] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    def __call__(self, groups: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return model inputs with one packed row a group (see :mod:`src.model.packing`), ``weights`` and ``sources``.

        Raises:
            RecordError: a group that cannot be used, by its ``id``.
        """
        encoded = [encode_group(self.encoder, group) for group in groups]
        input_ids, segment_ids = pack([rows for rows, _ in encoded], self.encoder.processor.tokenizer.pad_token_id)
        images = [image for _, several in encoded for image in several]
        names = [str(group.get("source") or "") for group in groups]
        self.sources += [name for name in dict.fromkeys(names) if name not in self.sources]
        batch = {
            "input_ids": input_ids,
            "segment_ids": segment_ids,
            "weights": torch.tensor([float(self.source_weights.get(name, 1.0)) for name in names]),
            "sources": torch.tensor([self.sources.index(name) for name in names]),
        }
        if images:
            batch["pixel_values"] = torch.cat([image.pixel_values for image in images])
            batch["image_grid_thw"] = torch.tensor([image.grid for image in images])
        return batch


def encode_group(encoder: PairEncoder, group: Mapping[str, Any]) -> tuple[list[list[int]], list[EncodedImage]]:
    """Return the token ids of each answer with the prompt before it, chosen first, and the images, each encoded once.

    Raises:
        RecordError: as :meth:`PairEncoder.image`, :meth:`PairEncoder.prompt` and :meth:`PairEncoder.token_ids`.
    """
    try:
        images = [encoder.image(image) for image in group["images"]]
        answers = (group["chosen"], *group["rejected"])
        prompts = [encoder.prompt({"text": text, "question": group.get("question")}, images) for text in answers]
        ids: list[list[int]] = []
        for row in encoder.token_ids(prompts):
            if isinstance(row, RecordError):
                raise row
            ids.append(row)
        return ids, images
    except RecordError as error:
        raise RecordError(error.kind, f"{group['id']}: {error}" if group.get("id") else str(error)) from error


class RewardTrainer(ShardedTrainer):
    """Trainer whose loss is the likelihood of the chosen answer against the rejected ones of its group.

    Args:
        loss: ``pairwise`` (each rejected answer on its own; what was published), ``choice`` (all of them at once) or
            ``plackett_luce`` (the rejected answers are in order, best first).
        margin: by how much the chosen answer should lead (not for ``plackett_luce``).
        centring_weight: weight of the mean squared sum of the chosen score and each rejected one, which pins down
            where the scores lie (Eisenstein et al. 2023, "Helping or Herding?").
        pooled_weight: weight of :func:`src.model.ranking.pooled_loss`, which compares answers across prompts. It pools
            one process's micro-batch, so it alone depends on how a batch is divided.
        text_weight: weight of predicting the chosen answer token by token through the input embeddings, which teaches
            the language model to look at the image by every word and keeps its features general (Yang et al. 2024,
            "Regularizing Hidden States Enables Learning Generalizable Reward Model for LLMs").
        args, kwargs: as for :class:`transformers.Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        loss: Loss = "pairwise",
        margin: float = 0.0,
        centring_weight: float = 0.0,
        pooled_weight: float = 0.0,
        text_weight: float = 0.0,
        **kwargs: Any,
    ):
        self.loss, self.margin, self.centring_weight = loss, margin, centring_weight
        self.pooled_weight, self.text_weight = pooled_weight, text_weight
        super().__init__(*args, **kwargs)
        self._since_log: list[Tensor] = []

    def create_accelerator_and_postprocess(self) -> None:
        """Refuse what the weights, as they are divided, cannot do."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.is_deepspeed_enabled and state.deepspeed_plugin.zero_stage == 3 and self.text_weight:
            raise JobError(
                "loss.text_weight needs the whole word embeddings, which ZeRO-3 divides; use FSDP2 or ZeRO-2"
            )

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:  # type: ignore[override]
        """Loss of a batch of :class:`PreferenceCollator`; with outputs also ``{"values": (groups, K)}``, NaN absent."""
        inputs = dict(inputs)
        weights, _sources = inputs.pop("weights"), inputs.pop("sources")
        # As a tuple: wrappers for several processes look into outputs by dict.values, which the published name hides.
        values, hidden = model(**inputs, return_loss=False, return_dict=False)[:2]
        scores = values.view(len(inputs["input_ids"]), -1)
        loss = (weights * self._group_loss(scores)).mean()
        if self.pooled_weight:
            loss = loss + self.pooled_weight * pooled_loss(scores)
        if self.text_weight and model.training:
            embeddings = self.accelerator.unwrap_model(model).get_input_embeddings().weight
            loss = loss + self.text_weight * _text_loss(hidden, embeddings, inputs)
        if model.training:
            self._note(scores.detach(), inputs["segment_ids"])
        return (loss, {"values": scores}) if return_outputs else loss

    def _group_loss(self, scores: Tensor) -> Tensor:
        if self.loss == "pairwise":
            loss = pairwise_loss(scores, self.margin)
        else:
            loss = choice_loss(scores, self.margin) if self.loss == "choice" else ranking_loss(scores)
        if self.centring_weight:
            rejected = scores[:, 1:]
            absent = torch.isnan(rejected)
            squares = (scores[:, :1] + rejected.masked_fill(absent, 0)).square().masked_fill(absent, 0)
            loss = loss + self.centring_weight * squares.sum(-1) / (~absent).sum(-1)
        return loss

    def _note(self, scores: Tensor, segment_ids: Tensor) -> None:
        """Keep what the next log line sums up, of all processes; on the device, so that no step waits for it."""
        gap = (scores[:, :1] - scores[:, 1:]).flatten()
        gap, given = gap[~torch.isnan(gap)], scores[~torch.isnan(scores)]
        local = torch.stack(
            [(gap > 0).float().mean(), gap.mean(), given.min(), given.mean(), given.max(), (segment_ids >= 0).sum()]
        ).float()
        self._since_log.append(self.accelerator.gather(local[None]))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what was noted since the last training line: accuracy, margin, range of scores, tokens."""
        if "loss" in logs and self._since_log:
            for name, seen in zip(_LOGGED, torch.cat(self._since_log).T, strict=True):
                merge = {"score_min": seen.min, "score_max": seen.max, "tokens": seen.sum}.get(name, seen.mean)
                logs[name] = float(f"{merge().item():.5g}")
            self._since_log.clear()
        super().log(logs, *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):  # noqa: ARG002
        """Return loss, scores ``(groups, K)`` with NaN for absent answers, and the groups' source numbers as labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss, outputs["values"], inputs["sources"]

    def save_final(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the model, adapters merged, and its processor as a score model folder; all processes must call it."""
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
            state = model.state_dict()
        else:
            state = self.accelerator.get_state_dict(self.model_wrapped)
        if self.is_world_process_zero():
            model.save_as(folder, dtype, state)
            self.processing_class.save_pretrained(folder)  # type: ignore[union-attr]


def _text_loss(hidden: Tensor, embeddings: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the chosen answers' tokens, each predicted from the token before it."""
    chosen = inputs["segment_ids"][:, 1:] == 1
    embeddings = embeddings.full_tensor() if isinstance(embeddings, DTensor) else embeddings
    logits = hidden[:, :-1][chosen] @ embeddings.T
    return F.cross_entropy(logits.float(), inputs["input_ids"][:, 1:][chosen])


def ranking_metrics(evaluation: Any, sources: Sequence[str] = ()) -> dict[str, float]:
    """Accuracy over pairs of a group and over all groups (``auc``), margin, and range of scores; a tie is wrong.

    With more than one of ``sources`` (names in the order of their numbers) also ``accuracy_<source>``.
    """
    scores = torch.as_tensor(evaluation.predictions)
    scores = scores.masked_fill(scores < 0, float("nan"))  # scores are > 0; Trainer pads short groups with -100
    gap = scores[:, :1] - scores[:, 1:]
    there = ~torch.isnan(gap)
    rejected = scores[:, 1:][there].sort().values
    metrics = {
        "accuracy": (gap[there] > 0).float().mean().item(),
        "auc": torch.searchsorted(rejected, scores[:, 0].contiguous()).double().mean().item() / len(rejected),
        "margin": gap[there].mean().item(),
        "score_min": scores.nan_to_num(float("inf")).min().item(),
        "score_mean": scores.nanmean().item(),
        "score_max": scores.nan_to_num(float("-inf")).max().item(),
    }
    if len(sources) > 1:
        numbers = torch.as_tensor(evaluation.label_ids)
        for number, name in enumerate(sources):
            mine = gap[numbers == number]
            if len(mine):
                metrics[f"accuracy_{name}"] = (mine[~torch.isnan(mine)] > 0).float().mean().item()
    return metrics
