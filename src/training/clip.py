"""Train CLIP on captioned images with Hugging Face's Trainer, against the batch of all processes."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from torch import Tensor, nn
from transformers import CLIPModel, Trainer, TrainerCallback

from src.errors import JobError
from src.training.clip_loss import cached_backward, global_loss

MAX_LOG_SCALE = math.log(100)  # Radford et al. 2021: the scale of the logits is kept from growing beyond 100
Evaluate = Callable[[CLIPModel], Mapping[str, float]]


class ClipTrainer(Trainer):
    """Trainer of a ``CLIPModel`` on batches of :class:`src.training.clip_data.ClipCollator`.

    Args:
        local_loss: see :func:`src.training.clip_loss.global_loss`.
        chunk: pairs of a micro-batch that are encoded at a time, see
            :func:`src.training.clip_loss.cached_backward`; None encodes all at once. Negatives are those of the whole
            micro-batch of all processes either way, where accumulated micro-batches are none of each other's.
        evaluate_with: measures the model, by name; runs on the main process alone. None: no evaluation.
        args, kwargs: as for :class:`transformers.Trainer`.

    Raises:
        JobError: weights divided among processes (FSDP, ZeRO-3), of which the main process alone cannot be measured; or
            ``chunk`` below 1, or under DeepSpeed, whose engine counts every backward pass as a micro-batch.
    """

    def __init__(
        self,
        *args: Any,
        local_loss: bool = False,
        chunk: int | None = None,
        evaluate_with: Evaluate | None = None,
        **kwargs: Any,
    ):
        self.local_loss, self.chunk, self.evaluate_with = local_loss, chunk, evaluate_with
        if evaluate_with is not None:
            kwargs["eval_dataset"] = []  # Trainer asks for one wherever it is to evaluate; evaluate() has no use for it
        super().__init__(*args, **kwargs)
        if chunk is not None and chunk < 1:
            raise JobError(f"loss.chunk must be at least 1, not {chunk}")
        if chunk is not None and self.is_deepspeed_enabled:
            raise JobError("loss.chunk does not work under DeepSpeed; use DDP (config/accelerate/ddp.yaml)")
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        if self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
            raise JobError(
                "CLIP trains under DDP or ZeRO-2 (config/accelerate/ddp.yaml, zero2.yaml), not FSDP or ZeRO-3"
            )
        self.add_callback(ClampScale())
        if hasattr(self.train_dataset, "set_epoch"):
            self.add_callback(TellEpoch(self.train_dataset))

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight matrices alone: no norm, bias, class embedding or scale of the logits."""
        names = super().get_decay_parameter_names(model)
        sizes = {name: weight.ndim for name, weight in model.named_parameters()}
        return [name for name in names if sizes[name] > 1]

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:  # type: ignore[override]
        """Loss of one micro-batch, encoded at once."""
        image, text = encode(model, inputs)
        loss = self._loss(image, text, self._log_scale(model), inputs["groups"])
        return (loss, {"image": image, "text": text}) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Backpropagate one micro-batch, by chunks where ``chunk`` says so."""
        if self.chunk is None or len(inputs["input_ids"]) <= self.chunk:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        rows = torch.arange(len(inputs["input_ids"]), device=inputs["input_ids"].device).split(self.chunk)

        def one_chunk(number: int) -> tuple[Tensor, Tensor]:
            with self.compute_loss_context_manager():
                return encode(model, _part(inputs, rows[number]))

        def loss_of(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
            found = self._loss(image, text, log_scale, inputs["groups"])
            return found / self.current_gradient_accumulation_steps

        unsynced = getattr(model, "no_sync", nullcontext)
        return cached_backward(
            one_chunk, len(rows), loss_of, self._log_scale(model), self.accelerator.backward, unsynced
        )

    def _loss(self, image: Tensor, text: Tensor, log_scale: Tensor, groups: Tensor) -> Tensor:
        # not clamped here: at the bound the gradient of a clamp is 0, and the scale would never leave it again
        return global_loss(image, text, log_scale.exp(), groups, self.local_loss)

    def _log_scale(self, model: Any) -> Tensor:
        return self.accelerator.unwrap_model(model).logit_scale

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the scale of the logits to a training line."""
        if "loss" in logs:
            logs["logit_scale"] = float(f"{self._log_scale(self.model).detach().float().exp().item():.5g}")
        super().log(logs, *args, **kwargs)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Measure the model on the main process, tell all, and log it."""
        found: list[Any] = [None]
        if self.is_world_process_zero() and self.evaluate_with is not None:
            model: Any = self.accelerator.unwrap_model(self.model)
            model = model.base_model.model if isinstance(model, PeftModel) else model
            found = [{f"{metric_key_prefix}_{name}": value for name, value in self.evaluate_with(model).items()}]
        if self.args.world_size > 1:
            broadcast_object_list(found)
        metrics: dict[str, float] = found[0] or {}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_final(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the model, adapters merged, with its processor; all processes must call it."""
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        if self.is_world_process_zero():
            state = {name: weight.to(dtype) for name, weight in model.state_dict().items()}
            model.config.dtype = dtype
            model.save_pretrained(folder, state_dict=state)
            self.processing_class.save_pretrained(folder)  # type: ignore[union-attr]


class ClampScale(TrainerCallback):
    """Keeps the scale of the logits between 1 and 100."""

    def on_step_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        """Keep the parameter itself in its range, or it could wander where the loss no longer moves it."""
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOG_SCALE)


class TellEpoch(TrainerCallback):
    """Tells a data set which epoch begins, before its workers start; accelerate does so for one process alone."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Also where a run goes on in the middle of an epoch, when ``state.epoch`` has a fraction."""
        self.dataset.set_epoch(int((state.epoch or 0) + 1e-6))


def encode(model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Unit features of a batch's pairs; an image that several pairs share is encoded once."""
    keys = ("input_ids", "attention_mask", "pixel_values")
    outputs = model(**{key: inputs[key] for key in keys})
    return outputs.image_embeds[inputs["image_index"]], outputs.text_embeds


def _part(inputs: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Some pairs of a batch, with the images that they need."""
    images, index = inputs["image_index"][rows].unique(return_inverse=True)
    texts = {key: inputs[key][rows] for key in ("input_ids", "attention_mask")}
    return {**texts, "pixel_values": inputs["pixel_values"][images], "image_index": index}
