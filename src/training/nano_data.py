"""What the embedded model learns from: captioned real images and made scenes, as endless seeded draws.

A data set here is a function of (seed, index) with as many indexes as the training asks for, so one "epoch" is one
whole training, and any draw can be repeated.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from src.dataset.images import open_image
from src.dataset.records import DataSpec, read_records
from src.dataset.scene_facts import Facts, draw_facts
from src.dataset.scene_text import CORRUPTIONS, captions, corrupt, garbled, off_topic, vague
from src.dataset.scenes import make_scene, scene_rng, scene_seeds

Sample = dict[str, Any]


@dataclass(frozen=True)
class RealImages:
    """Captioned images with a class each.

    Attributes:
        pixels: one ``(height, width, 3)`` uint8 array per image.
        texts: captions of each image, distinct, none empty.
        labels: class of each image.
    """

    pixels: list[np.ndarray]
    texts: list[list[str]]
    labels: list[str]


@dataclass(frozen=True)
class SceneImages:
    """Made scenes: ``(n, side, side, 3)`` uint8 pixels and the facts that captions are made from."""

    pixels: np.ndarray
    facts: list[Facts]


def load_real(path: str, text_column: str = "captions", label_column: str = "label") -> RealImages:
    """Read a captioned data set into memory, leaving out records and captions that are no use (empty, only a dot)."""
    data = RealImages([], [], [])
    for record in tqdm(read_records(DataSpec(path, text_column=text_column, source_column=label_column)), "real"):
        texts = list(dict.fromkeys(text for text in record.texts if any(map(str.isalnum, text))))
        if record.error is None and texts:
            data.pixels.append(np.asarray(open_image(record.images[0])))
            data.texts.append(texts)
            data.labels.append(record.source)
    return data


def load_scenes(seed: int, count: int, side: int, cache: Path, processes: int = 2) -> SceneImages:
    """Make scenes (about 20 ms each), shrunk to ``side`` px, or read the pixels back from ``cache``."""
    seeds = scene_seeds(seed, count)
    stored = cache / f"scenes-{seed}-{count}-{side}.npy"
    if not stored.exists():
        with ProcessPoolExecutor(processes) as pool:
            made = list(tqdm(pool.map(partial(_scene_pixels, side=side), seeds, chunksize=32), "scenes", count))
        cache.mkdir(parents=True, exist_ok=True)
        np.save(stored, np.stack(made))
    return SceneImages(np.load(stored), [draw_facts(scene_rng(seed)) for seed in seeds])


def _scene_pixels(seed: int, side: int) -> np.ndarray:
    return np.asarray(make_scene(seed).image.resize((side, side), Image.Resampling.BICUBIC))


@dataclass
class NanoData(Dataset):
    """Draws of one kind from both sources.

    Attributes:
        task: ``contrastive`` draws ``{"image", "text", "hard"}``, ``preference`` draws groups for
            :class:`src.training.reward.PreferenceCollator`.
        size: number of draws.
        real_share: share of draws from real images, 0..1.
        same_class: of the rejected captions of a real image, the share taken from its own class, 0..1.
        rejected: wrong answers in a group.
        clean_only: reject captions of other images only, no garbled, vague or off-topic text.
        augment: turn, flip and crop real images (captions of scenes say left and right, so these stay as they are).
    """

    task: Literal["contrastive", "preference"]
    size: int
    seed: int
    real: RealImages
    scenes: SceneImages
    real_share: float = 0.6
    same_class: float = 0.25
    rejected: int = 3
    clean_only: bool = False
    augment: bool = True

    def __post_init__(self) -> None:
        labels = np.array(self.real.labels)
        self._same = {label: np.flatnonzero(labels == label) for label in set(self.real.labels)}
        self._other = {label: np.flatnonzero(labels != label) for label in set(self.real.labels)}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        """Return draw number ``index``; the source is drawn too."""
        rng = np.random.default_rng([self.seed, index])
        if rng.random() < self.real_share:
            return self._real(rng, int(rng.integers(len(self.real.pixels))))
        return self._scene(rng, int(rng.integers(len(self.scenes.facts))))

    def _real(self, rng: np.random.Generator, i: int) -> Sample:
        image = self.real.pixels[i]
        chosen = _draw(rng, self.real.texts[i])
        if self.augment:
            image = _augmented(image, rng)
        sample: Sample = {"image": Image.fromarray(image)}
        if self.task == "contrastive":
            return {**sample, "text": chosen}
        return {**sample, "chosen": chosen, "rejected": [self._wrong(rng, i, chosen) for _ in range(self.rejected)]}

    def _wrong(self, rng: np.random.Generator, i: int, chosen: str) -> str:
        kind = 1.0 if self.clean_only else rng.random()
        if kind < 0.05 and (text := garbled(chosen, rng)) != chosen:
            return text
        if kind < 0.075:
            return off_topic(rng)
        if kind < 0.1:
            return vague(rng)
        label = self.real.labels[i]
        pool = self._same[label] if rng.random() < self.same_class else self._other[label]
        for _ in range(8):
            text = _draw(rng, self.real.texts[int(rng.choice(pool))])
            if text not in self.real.texts[i]:
                return text
        return _draw(rng, self.real.texts[int(rng.choice(self._other[label]))])

    def _scene(self, rng: np.random.Generator, i: int) -> Sample:
        facts = self.scenes.facts[i]
        image = Image.fromarray(self.scenes.pixels[i])
        chosen = captions(facts, rng, 1)[0]
        kinds = rng.permutation(CORRUPTIONS)
        if self.task == "contrastive":
            return {"image": image, "text": chosen, "hard": corrupt(facts, rng, str(kinds[0]))[0]}
        return {
            "image": image,
            "chosen": chosen,
            "rejected": [corrupt(facts, rng, str(k))[0] for k in kinds[: self.rejected]],
        }

    def all_texts(self, draws: int = 3000) -> list[str]:
        """Every real caption, and captions of made scenes right and wrong: what a tokeniser is trained on."""
        rng = np.random.default_rng(self.seed)
        texts = [text for several in self.real.texts for text in several]
        for facts in self.scenes.facts[:draws]:
            texts += [*captions(facts, rng, 2), *(corrupt(facts, rng, kind)[0] for kind in CORRUPTIONS)]
        return texts


def _draw(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _augmented(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the eight turns and flips (north has no meaning in these captions) of a crop of 80 to 100 % a side."""
    height, width = image.shape[:2]
    share = rng.uniform(0.8, 1)
    h, w = int(height * share), int(width * share)
    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    image = np.rot90(image[y : y + h, x : x + w], int(rng.integers(4)))
    return np.ascontiguousarray(image[:, ::-1] if rng.random() < 0.5 else image)
