"""Make a preference set: own captions against wrong ones, labelled by kind of wrong.

    python python_script/build_preference.py captions data.path=rsicd_aid_train.parquet data.text_column=captions \\
        data.source_column=label output=output/preferences/rsicd.parquet
    python python_script/build_preference.py scenes scenes.count=2000 output=output/preferences/scenes.parquet
    python python_script/build_preference.py boxes scenes.count=8000 scenes.size=112 \\
        output=output/preferences/boxes.parquet

``captions`` reads any data set that score_dataset.py reads; ``scenes`` makes overhead scenes, ``boxes`` too, with
answers in boxes to grounding questions, for judges of best-of-N. The file is one set for train_reward.py and
evaluation/reward_accuracy.py.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from src.config import MISSING, run_program
from src.curation.scorer import NANO, Scorer
from src.dataset.box_groups import BOX_KINDS, box_groups
from src.dataset.images import ImageSource, locate_image, open_image
from src.dataset.preference_build import CAPTION_KINDS, caption_groups, most_alike, scene_groups, write_groups
from src.dataset.records import DataSpec, read_records, resolve_root
from src.dataset.scene_text import CORRUPTIONS
from src.dataset.scenes import scene_seeds
from src.errors import JobError, RecordError

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("captions", "scenes", "boxes")
_KINDS = {"captions": CAPTION_KINDS, "scenes": CORRUPTIONS, "boxes": BOX_KINDS}


@dataclass
class Data:
    path: str = ""
    image_root: str | None = None
    image_column: str = "filename"
    text_column: str = "title"
    source_column: str | None = None


@dataclass
class Scenes:
    count: int = 1000
    seed: int = 3
    size: int = 224
    alike: float = 1.0


@dataclass
class BuildConfig:
    way: str = MISSING
    output: str = MISSING
    kinds: list[str] = field(default_factory=list)
    seed: int = 0
    images: bool = True
    features: str = NANO
    data: Data = field(default_factory=Data)
    scenes: Scenes = field(default_factory=Scenes)


def main(config: BuildConfig) -> None:
    if config.way not in WAYS:
        raise JobError(f"say what to make the set from: {', '.join(WAYS)}")
    known = _KINDS[config.way]
    kinds = config.kinds or known
    if unknown := set(kinds) - set(known):
        raise JobError(f"kinds: no kind {', '.join(sorted(unknown))}; for {config.way} there are {', '.join(known)}")
    made = config.scenes
    seeds = tqdm(scene_seeds(made.seed, made.count), "scenes", disable=config.way == "captions")
    if config.way == "boxes":
        groups = box_groups(seeds, kinds, made.size)
    elif config.way == "scenes":
        groups = scene_groups(seeds, kinds, made.size, made.alike, config.images)
    else:
        groups = _captioned(config, kinds)
    counts = write_groups(groups, Path(config.output))
    print("\n".join(f"{kind:<16} {count:>7}" for kind, count in counts.items()))
    print(f"preferences: {config.output}")


def _captioned(config: BuildConfig, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The groups of a captioned data set with their images, which are read again in a second pass."""
    spec = DataSpec(**vars(config.data))
    root = resolve_root(spec)
    scorer = Scorer.from_pretrained(config.features) if "nearest" in kinds else None
    usable: dict[int, tuple[list[str], str]] = {}
    features, errors = [], Counter[str]()
    for record in tqdm(read_records(spec), "reading", unit=" records"):
        texts = record.captions
        try:
            if record.error or not texts:
                raise record.error or RecordError("empty_text", "no caption with a letter in it")
            picture = open_image(record.images[0], root)
        except RecordError as error:
            errors[error.kind] += 1
            continue
        usable[record.row] = (texts, record.source)
        if scorer:
            features.append(_feature(scorer, picture))
    left_out = f" ({', '.join(f'{kind} {n}' for kind, n in errors.items())})" if errors else ""
    print(f"{len(usable)} captioned images, {errors.total()} records left out{left_out}")
    if len(usable) < 2:
        raise JobError(f"{config.data.path} has too few usable captioned images")
    nearest = most_alike(np.stack(features)).tolist() if scorer else ()
    texts_of, labels = zip(*usable.values(), strict=True)
    groups = dict(zip(usable, caption_groups(texts_of, labels, kinds, config.seed, nearest), strict=True))
    for record in read_records(spec):
        if group := groups.get(record.row):
            image = _encoded(record.images[0], root) if config.images else None
            yield {"image": image, "source": record.source, **group}


def _feature(scorer: Scorer, picture: Image.Image) -> np.ndarray:
    """Mean image token by the vision tower of a score model."""
    image = scorer.encoder.image(picture)
    with torch.inference_mode():
        tokens = scorer.model.encode_images(image.pixel_values, torch.tensor([image.grid]))[0]
    return tokens.float().mean(0).numpy()


def _encoded(image: ImageSource, root: Path) -> dict[str, Any]:
    """An image as the set keeps it: encoded bytes, so that the set is whole wherever it is moved."""
    if isinstance(image, Mapping) and image.get("bytes") is not None:
        return {"bytes": image["bytes"], "path": image.get("path")}
    if isinstance(image, bytes):
        return {"bytes": image, "path": None}
    path = locate_image(image["path"] if isinstance(image, Mapping) else str(image), root)
    return {"bytes": path.read_bytes(), "path": path.name}


if __name__ == "__main__":
    way = [f"way={sys.argv[1]}"] if len(sys.argv) > 1 and sys.argv[1] in WAYS else []
    run_program(main, BuildConfig, ROOT / "config" / "build_preference.yaml", [*way, *sys.argv[1 + len(way) :]])
