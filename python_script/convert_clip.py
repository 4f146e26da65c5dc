"""Rewrite a CLIP model in the layout of the other library: transformers' CLIPModel, or open_clip.

    python python_script/convert_clip.py RemoteCLIP-ViT-B-32.pt output/remote_clip --to transformers
    python python_script/convert_clip.py open_clip:ViT-B-32:RS5M.pt output/geo_rs_clip --to transformers
    python python_script/convert_clip.py output/my_clip output/my_open_clip --to open_clip

SOURCE is what src.model.clip.load_clip takes. After writing, TARGET is loaded and must give the features of SOURCE.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from src.config import exit_on_job_error
from src.errors import JobError
from src.model.checkpoint import new_folder
from src.model.clip import Clip, OpenClip, TransformersClip, load_clip
from src.model.clip_layouts import to_open_clip, to_transformers

TOLERANCE = 1e-4  # of unit features; rounding of float32 in deep models stays below
TEXTS = ["two white planes beside a terminal .", "a river between green fields, and a bridge", "forest"]


def convert(source: str, target: Path, to: str) -> Clip:
    """Write ``target`` and return the source."""
    clip = load_clip(source, device="cpu", dtype="float32")
    if clip.backend == to:
        raise JobError(f"{source} is of {to} already")
    if isinstance(clip, OpenClip):
        model, processor = to_transformers(clip)
        with new_folder(target) as partial:
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
    elif isinstance(clip, TransformersClip):
        to_open_clip(clip.model, clip.processor, target)
    return clip


def difference(a: Clip, b: Clip) -> float:
    """Greatest difference of the unit features of some texts and of noise, seen by ``a``'s own preprocessing."""
    noise = np.random.default_rng(0).integers(0, 256, (320, 400, 3), dtype=np.uint8)
    pixels = a.preprocess(Image.fromarray(noise))[None]
    images = a.image_features(pixels) - b.image_features(pixels)
    texts = a.text_features(TEXTS) - b.text_features(TEXTS)
    return float(torch.cat([images, texts]).abs().max())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder, hub id, or checkpoint file")
    parser.add_argument("target", type=Path, help="new folder")
    parser.add_argument("--to", required=True, choices=("transformers", "open_clip"), help="layout to write")
    args = parser.parse_args(argv)
    with exit_on_job_error():
        source = convert(args.source, args.target, args.to)
        apart = difference(source, load_clip(args.target, device="cpu", dtype="float32"))
        if not apart <= TOLERANCE:
            raise JobError(f"{args.target} gives other features than {args.source}: they differ by up to {apart:.2g}")
        print(f"features of both differ by at most {apart:.1g}")
        print(f"model  {args.target}")


if __name__ == "__main__":
    main()
