"""A CLIP training from its configuration to its last file."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from omegaconf import OmegaConf
from transformers import CLIPModel, CLIPProcessor, set_seed

from src.errors import JobError
from src.model.clip import OpenClip, TransformersClip, load_clip
from src.model.clip_layouts import to_transformers
from src.model.nano import prefer_fast_attention
from src.training.clip import ClipTrainer
from src.training.clip_config import ClipConfig, make_trainable
from src.training.clip_data import ClipCollator, load_pairs
from src.training.run import resume_point, set_up_wandb, training_arguments, write_outcome

Measure = Callable[[CLIPProcessor, CLIPModel], Mapping[str, float]]


def train_clip(config: ClipConfig, measure: Measure | None = None) -> dict[str, float]:
    """Fine-tune the model of a configuration and write ``save_folder``; returns what ``metrics.json`` holds.

    Args:
        measure: finds the figures of the model, ``top1`` among them, by which checkpoints are judged; None: none are.

    Raises:
        JobError: as :func:`load_pairs`, :func:`resume_point` and :class:`ClipTrainer`, or a model that is no CLIP.
    """
    checkpoint, out = resume_point(config), Path(config.save_folder)
    set_up_wandb(config)
    arguments = training_arguments(
        config, "eval_top1" if measure else None, dataloader_num_workers=config.data.num_workers
    )
    set_seed(config.seed)
    model, processor = _model(config.model.model_name)
    context = model.text_model.config.max_position_embeddings
    model.set_attn_implementation(config.model.attn_implementation)
    if config.precision == "bf16" and config.model.attn_implementation == "sdpa":
        prefer_fast_attention(model)
    with arguments.main_process_first(local=False):
        pairs = load_pairs(config.data, config.seed)
    if arguments.process_index == 0:
        print(f"{pairs.summary}\n{len(pairs):,} pairs an epoch; {arguments.world_size} processes")
        out.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.structured(config), out / "config.yaml")

    trainer = ClipTrainer(
        make_trainable(model, config.model),
        arguments,
        ClipCollator(processor, context, pairs.root, config.data.augment),
        pairs,
        processing_class=processor,
        local_loss=config.loss.local,
        chunk=config.loss.chunk,
        evaluate_with=partial(measure, processor) if measure else None,
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    metrics = {"train_pairs_per_second": result.metrics["train_samples_per_second"]}
    if measure:
        metrics |= trainer.evaluate()
    trainer.save_final(out / "final", getattr(torch, config.model.save_dtype))
    write_outcome(trainer, out, metrics)
    return metrics


def _model(path: str) -> tuple[CLIPModel, CLIPProcessor]:
    clip = load_clip(path, device="cpu", dtype=torch.float32)
    if isinstance(clip, OpenClip):
        return to_transformers(clip)
    assert isinstance(clip, TransformersClip)
    if not isinstance(clip.model, CLIPModel):
        raise JobError(f"model.model_name: {path!r} is a {type(clip.model).__name__}; a CLIPModel is wanted")
    return clip.model, clip.processor
