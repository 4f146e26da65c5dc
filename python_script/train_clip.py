"""Fine-tune CLIP on captioned images, such as those that a selection kept, on one process or many.

    python python_script/train_clip.py CONFIG [key=value ...]
    python python_script/train_clip.py data.subset=output/mine model.model_name=openai/clip-vit-large-patch14
    torchrun --nproc_per_node 4 python_script/train_clip.py CONFIG [key=value ...]

``save_folder`` receives ``config.yaml``, TensorBoard logs, ``checkpoint-N`` (go on with ``load_path=last``), ``final``
(a folder for ``CLIPModel`` and ``CLIPProcessor``; convert_clip.py makes one for open_clip of it), ``metrics.json`` and
``history.json``.
"""

import logging
from functools import partial
from pathlib import Path

import torch
from omegaconf import OmegaConf
from transformers import CLIPModel, CLIPProcessor, set_seed

from src.config import run_program
from src.errors import JobError
from src.evaluation.class_sets import find_sets
from src.evaluation.zero_shot import evaluate_class_folders
from src.model.clip import OpenClip, TransformersClip, load_clip
from src.model.clip_layouts import to_transformers
from src.model.nano import prefer_fast_attention
from src.training.clip import ClipTrainer
from src.training.clip_config import ClipConfig, make_trainable
from src.training.clip_data import ClipCollator, load_pairs
from src.training.run import resume_point, set_up_wandb, training_arguments, write_outcome

ROOT = Path(__file__).resolve().parents[1]


def main(config: ClipConfig) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    checkpoint, out = resume_point(config), Path(config.save_folder)
    set_up_wandb(config)
    sets = _class_sets(config.data.val_data_path)
    best_by = "eval_top1" if sets else None
    arguments = training_arguments(config, best_by, dataloader_num_workers=config.data.num_workers)
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
        evaluate_with=partial(_zero_shot, processor, sets, config.device_eval_batch_size) if sets else None,
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    metrics = {"train_pairs_per_second": result.metrics["train_samples_per_second"]}
    if sets:
        metrics |= trainer.evaluate()
    trainer.save_final(out / "final", getattr(torch, config.model.save_dtype))
    write_outcome(trainer, out, metrics)


def _model(path: str) -> tuple[CLIPModel, CLIPProcessor]:
    clip = load_clip(path, device="cpu", dtype=torch.float32)
    if isinstance(clip, OpenClip):
        return to_transformers(clip)
    assert isinstance(clip, TransformersClip)
    if not isinstance(clip.model, CLIPModel):
        raise JobError(f"model.model_name: {path!r} is a {type(clip.model).__name__}; a CLIPModel is wanted")
    return clip.model, clip.processor


def _class_sets(folder: str | None) -> list[Path]:
    """The class folders ``*_Image`` of a folder, or that folder itself if it is one."""
    if folder is None:
        return []
    sets = [found for found in find_sets([folder]) if found.name.endswith("_Image")]
    if not sets:
        raise JobError(f"data.val_data_path: {folder} has no class folders named *_Image")
    return sets


def _zero_shot(processor: CLIPProcessor, sets: list[Path], batch_size: int, model: CLIPModel) -> dict[str, float]:
    """Top-1 and top-5 of every set, and the mean of top-1 over sets."""
    clip, found = TransformersClip("training", model, processor), {}
    for folder in sets:
        result = evaluate_class_folders(clip, folder, batch_size=batch_size, progress=False)
        for name in ("top1", "top5"):
            if (value := result.metrics[name]["value"]) is not None:
                found[f"clip_cls_{result.set}_{name}"] = value
    top1 = [value for name, value in found.items() if name.endswith("top1")]
    return {"top1": sum(top1) / len(top1), **found}


if __name__ == "__main__":
    run_program(main, ClipConfig, ROOT / "config" / "clip_training_remoteclip.yaml")
