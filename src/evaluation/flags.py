"""The flags that the CLIP programs share: which model, and how its features are found."""

import argparse
from pathlib import Path

from src.evaluation.features import FeatureStore
from src.model.clip import NANO_CLIP, load_clip


def add_feature_flags(parser: argparse.ArgumentParser) -> None:
    """``--model_path``, ``--cache``, ``--batch_size``, ``--workers``, ``--device`` and ``--dtype``."""
    add = parser.add_argument
    add("--model_path", "--model", default=NANO_CLIP, help="folder, hub id or open_clip checkpoint (%(default)s)")
    add("--cache", default="output/clip_features", help='folder that keeps features (%(default)s); "" keeps none')
    add("--batch_size", type=_positive, default=128, help="images or texts in a forward pass (%(default)s)")
    add("--workers", type=_positive, default=8, help="threads that decode images (%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="(%(default)s)")


def load_store(args: argparse.Namespace) -> FeatureStore:
    """Load the model that the flags name. Raises JobError as :func:`src.model.clip.load_clip`."""
    clip = load_clip(args.model_path, args.device, args.dtype)
    return FeatureStore(clip, args.batch_size, args.workers, Path(args.cache) if args.cache else None)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1 is needed, not {text}")
    return int(text)
