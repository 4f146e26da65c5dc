"""Make what the embedded CLIP is trained from: random weights in its shape, and pairs of made scenes and real images.

    python python_script/make_nano_clip.py --output output/nano_clip [--scenes 8000] [--captions train.parquet] ...
    python python_script/train_clip.py config/nano/clip_training.yaml model.model_name=output/nano_clip/start \\
        data.csv_path=output/nano_clip/pairs.parquet

Writes ``start``, a folder for ``CLIPModel`` and ``CLIPProcessor``, and ``pairs.parquet`` (image, captions). Captions of
scenes that speak of directions are left out, as training turns and flips images.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from src.dataset.arrow_cache import IMAGE
from src.dataset.scene_text import captions
from src.model.nano_clip import nano_clip
from src.training.nano_data import load_real, load_scenes

SCHEMA = pa.schema([("image", IMAGE), ("captions", pa.list_(pa.string()))])
DIRECTED = re.compile(r"\b(left|right|above|below|north|south|east|west|top|bottom|upper|lower)\b")


def scene_rows(count: int, side: int, wordings: int, cache: Path) -> Iterator[dict[str, Any]]:
    """Made scenes with up to ``wordings`` captions each that hold however the image is turned."""
    scenes, rng = load_scenes(1, count, side, cache), np.random.default_rng(0)
    for pixels, facts in zip(scenes.pixels, scenes.facts, strict=True):
        texts = [text for text in captions(facts, rng, 8 * wordings) if not DIRECTED.search(text)]
        yield row(pixels, list(dict.fromkeys(texts))[:wordings])


def real_rows(path: str, text_column: str) -> Iterator[dict[str, Any]]:
    """Captioned images with their distinct captions."""
    real = load_real(path, text_column, label_column=None)
    for pixels, texts in zip(real.pixels, real.texts, strict=True):
        yield row(pixels, texts)


def row(pixels: np.ndarray, texts: Sequence[str]) -> dict[str, Any]:
    """One row of ``SCHEMA``."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return {"image": {"bytes": file.getvalue(), "path": None}, "captions": texts}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/nano_clip"), help="folder to write into")
    parser.add_argument("--scenes", type=int, default=8000, help="made scenes (default 8000)")
    parser.add_argument("--captions", help="captioned data set with embedded images besides, such as a .parquet file")
    parser.add_argument("--text-column", default="captions", help="its captions (default captions)")
    parser.add_argument("--side", type=int, default=112, help="pixels a side that the model sees (default 112)")
    parser.add_argument("--width", type=int, default=192, help="of both towers, a multiple of 64 (default 192)")
    parser.add_argument("--image-layers", type=int, default=5, help="of the image tower (default 5)")
    parser.add_argument("--text-layers", type=int, default=3, help="of the text tower (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    rows = [r for r in scene_rows(args.scenes, args.side + 16, 4, args.output / "cache") if r["captions"]]
    if args.captions:
        rows += real_rows(args.captions, args.text_column)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), args.output / "pairs.parquet", row_group_size=1024)
    shape = {"width": args.width, "image_layers": args.image_layers, "text_layers": args.text_layers}
    model, processor = nano_clip((text for r in rows for text in r["captions"]), image_side=args.side, **shape)
    model.save_pretrained(args.output / "start")
    processor.save_pretrained(args.output / "start")
    print(f"pairs  {args.output / 'pairs.parquet'} ({len(rows):,} images)")
    print(f"start  {args.output / 'start'} ({sum(weight.numel() for weight in model.parameters()):,} weights)")


if __name__ == "__main__":
    main()
