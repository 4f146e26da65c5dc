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

from transformers import CLIPModel, CLIPProcessor

from src.config import run_program
from src.errors import JobError
from src.evaluation.class_sets import find_sets
from src.evaluation.zero_shot import evaluate_class_folders
from src.model.clip import TransformersClip
from src.training.clip_config import ClipConfig
from src.training.clip_run import train_clip

ROOT = Path(__file__).resolve().parents[1]


def main(config: ClipConfig) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sets = _class_sets(config.data.val_data_path)
    train_clip(config, partial(_zero_shot, sets, config.device_eval_batch_size) if sets else None)


def _class_sets(folder: str | None) -> list[Path]:
    """The class folders ``*_Image`` of a folder, or that folder itself if it is one."""
    if folder is None:
        return []
    sets = [found for found in find_sets([folder]) if found.name.endswith("_Image")]
    if not sets:
        raise JobError(f"data.val_data_path: {folder} has no class folders named *_Image")
    return sets


def _zero_shot(sets: list[Path], batch_size: int, processor: CLIPProcessor, model: CLIPModel) -> dict[str, float]:
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
