"""Fine-tune CLIP on captioned images, such as those that a selection kept, on one process or many.

    python python_script/train_clip.py CONFIG [key=value ...]
    python python_script/train_clip.py data.subset=output/mine model.model_name=openai/clip-vit-large-patch14
    torchrun --nproc_per_node 4 python_script/train_clip.py CONFIG [key=value ...]

``save_folder`` receives ``config.yaml``, TensorBoard logs, ``checkpoint-N`` (go on with ``load_path=last``), ``final``
(a folder for ``CLIPModel`` and ``CLIPProcessor``; convert_clip.py makes one for open_clip of it), ``metrics.json`` and
``history.json``.
"""

import json
import logging
from pathlib import Path

import torch
from omegaconf import OmegaConf
from transformers import CLIPModel, set_seed

from src.config import run_program
from src.errors import JobError
from src.model.clip import TransformersClip, load_clip
from src.model.nano import prefer_fast_attention
from src.training.clip import ClipTrainer
from src.training.clip_config import ClipConfig, make_trainable
from src.training.clip_data import ClipCollator, load_pairs
from src.training.run import resume_point, set_up_wandb, training_arguments

ROOT = Path(__file__).resolve().parents[1]


def main(config: ClipConfig) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    checkpoint, out = resume_point(config), Path(config.save_folder)
    set_up_wandb(config)
    arguments = training_arguments(config, None, dataloader_num_workers=config.data.num_workers)
    set_seed(config.seed)
    clip = load_clip(config.model.model_name, device="cpu", dtype=torch.float32)
    if not isinstance(clip, TransformersClip) or not isinstance(clip.model, CLIPModel):
        raise JobError(f"model.model_name: {config.model.model_name!r} is no CLIP in the layout of transformers")
    model = clip.model.train()
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
        ClipCollator(clip.processor, pairs.root, config.data.augment),
        pairs,
        processing_class=clip.processor,
        local_loss=config.loss.local,
        chunk=config.loss.chunk,
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    metrics = {"train_pairs_per_second": result.metrics["train_samples_per_second"]}
    trainer.save_final(out / "final", getattr(torch, config.model.save_dtype))
    if trainer.is_world_process_zero():
        (out / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
        (out / "history.json").write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")
        print(json.dumps(metrics, indent=2))
        print(f"model: {out / 'final'}")


if __name__ == "__main__":
    run_program(main, ClipConfig, ROOT / "config" / "clip_training_remoteclip.yaml")
