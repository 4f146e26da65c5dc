"""A fine-tuning of Qwen2-VL from its configuration to its last file."""

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import SFTConfig

from src.dataset.collate import PairEncoder
from src.errors import JobError
from src.model.checkpoint import checkpoint_keys, locate, refuse_if_incomplete, usable_attention
from src.model.nano import prefer_fast_attention
from src.training.run import one_of, resume_point, set_up_wandb, training_arguments, write_outcome
from src.training.vlm import VlmTrainer
from src.training.vlm_config import Model, VlmConfig, make_trainable, trained_parts
from src.training.vlm_data import ConversationCollator, load_conversations

SIDE = 28  # pixels a side of one image token


def train_vlm(config: VlmConfig) -> dict[str, float]:
    """Fine-tune the model of a configuration and write ``save_folder``; returns what ``metrics.json`` holds.

    Raises:
        JobError: as :func:`load_conversations` and :func:`resume_point`, a model that is no Qwen2-VL, or nothing to
            train.
    """
    one_of("evaluation.best_by", config.evaluation.best_by, "accuracy", "loss")
    checkpoint, out = resume_point(config), Path(config.save_folder)
    set_up_wandb(config)
    arguments = training_arguments(
        config,
        f"eval_{config.evaluation.best_by}" if config.data.eval_path else None,
        SFTConfig,
        greater_is_better=config.evaluation.best_by == "accuracy",
        dataloader_num_workers=config.data.num_workers,
        # Every batch has an image and an answer, so that no part that trains is left out (vlm_data.py).
        ddp_find_unused_parameters=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )
    set_seed(config.seed)
    processor = load_processor(config.model.model_name, config.data.max_pixels)
    encoder = PairEncoder(processor, max_tokens=config.data.cutoff_len)
    with arguments.main_process_first(local=False):
        sets = [load_conversations(config.data, encoder)]
        if config.data.eval_path:
            sets.append(load_conversations(config.data, encoder, held_out=True))
    model = load_model(config.model, config.precision)
    one_row = model.config._attn_implementation == "flash_attention_2"
    collators = [ConversationCollator(data, own, one_row) for data, own in sets]
    trained = make_trainable(model, config.model)
    if not arguments.deepspeed_plugin:  # DeepSpeed keeps float32 copies itself
        for weight in trained.parameters():
            if weight.requires_grad:  # in half precision small updates would be lost
                weight.data = weight.data.float()
    if arguments.process_index == 0:
        for name, (data, _) in zip(("train", "held out"), sets, strict=False):
            print(f"{name}: {data.summary}")
        print(f"{trained_parts(trained)}; {arguments.world_size} processes on {arguments.device.type}")
        out.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.structured(config), out / "config.yaml")

    held_out = collators[1] if len(collators) > 1 else None
    trainer = VlmTrainer(trained, arguments, collators[0], held_out, config.evaluation)
    metrics: dict[str, float] = {}
    if held_out and config.evaluation.before_training and checkpoint is None:
        if is_deepspeed_zero3_enabled():
            raise JobError("evaluation.before_training cannot be had under ZeRO-3, which divides the weights by then")
        metrics |= trainer.evaluate(metric_key_prefix="before")
    result = trainer.train(resume_from_checkpoint=checkpoint)
    metrics["train_conversations_per_second"] = result.metrics["train_samples_per_second"]
    if held_out:
        metrics |= _latest(trainer) or trainer.evaluate()
    trainer.save_final(out / "final", getattr(torch, config.model.save_dtype))
    write_outcome(trainer, out, metrics)
    return metrics


def _latest(trainer: VlmTrainer) -> dict[str, float]:
    """The evaluation at the last step, if the best checkpoint, which the model is by now, is the one of that step."""
    state = trainer.state
    if state.best_global_step != state.global_step:
        return {}
    found = [entry for entry in state.log_history if "eval_loss" in entry and entry["step"] == state.global_step]
    return {name: value for name, value in found[-1].items() if name.startswith("eval_")} if found else {}


def load_processor(name: str, max_pixels: int) -> Any:
    """The processor of a model, whose images have at most ``max_pixels`` times 28 x 28 pixels from now on."""
    try:
        processor: Any = AutoProcessor.from_pretrained(locate(name))
    except (OSError, ValueError) as error:
        raise JobError(f"model.model_name: no processor at {name!r}: {error}") from error
    limit = max_pixels * SIDE * SIDE
    size = processor.image_processor.size
    if size["longest_edge"] > limit:  # which is what Qwen2-VL's processor calls its number of pixels
        least = min(size["shortest_edge"], limit)
        processor.image_processor.size = {"shortest_edge": least, "longest_edge": limit}
    return processor


def load_model(config: Model, precision: str) -> Qwen2VLForConditionalGeneration:
    """The whole model of a configuration, in its dtype.

    Raises:
        JobError: no such model, or one with missing weights.
    """
    path = locate(config.model_name)
    checkpoint_keys(path)  # says what is wrong with the path
    attention = usable_attention(config.attn_implementation, torch.cuda.is_available(), precision != "fp32")
    loaded: Any = Qwen2VLForConditionalGeneration.from_pretrained(
        path, dtype=getattr(torch, config.dtype), attn_implementation=attention, output_loading_info=True
    )
    model, info = loaded
    refuse_if_incomplete(path, "ours", info["missing_keys"])
    if precision == "bf16" and attention == "sdpa":
        prefer_fast_attention(model)
    logging.getLogger("transformers.generation").setLevel(logging.ERROR)  # of sampling keys that greedy search ignores
    return model
