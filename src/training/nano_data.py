"""What the embedded model learns from: captioned real images and made scenes, as endless seeded draws.

A data set here is a function of (seed, index) with as many indexes as the training asks for, so one "epoch" is one
whole training, and any draw can be repeated.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from src.dataset.augment import turned_crop
from src.dataset.images import open_image
from src.dataset.records import DataSpec, read_records
from src.dataset.scene_facts import RELATIONS, Facts, draw_facts
from src.dataset.scene_text import CORRUPTIONS, NEAR_MISSES, alike, captions, corrupt, garbled, off_topic, vague
from src.dataset.scenes import SceneObject, make_scene, scene_rng, scene_seeds
from src.training.grounding import no_labels, scene_labels

Sample = dict[str, Any]
MADE_SIDE = 224  # pixels a side at which scenes are drawn
CELL = 28  # pixels a side of one image token
_KIND_SHARES = np.array([1.0 if kind in NEAR_MISSES else 0.2 for kind in CORRUPTIONS])
_KIND_SHARES /= _KIND_SHARES.sum()


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
    """Made scenes: ``(n, side, side, 3)`` uint8 pixels, facts for captions, and objects (boxes on ``MADE_SIDE`` px)."""

    pixels: np.ndarray
    facts: list[Facts]
    objects: list[tuple[SceneObject, ...]]


def load_real(path: str, text_column: str = "captions", label_column: str | None = "label") -> RealImages:
    """Read a captioned data set into memory, leaving out records and captions that are no use (empty, only a dot)."""
    data = RealImages([], [], [])
    for record in tqdm(read_records(DataSpec(path, text_column=text_column, source_column=label_column)), "real"):
        if record.error is None and record.captions:
            data.pixels.append(np.asarray(open_image(record.images[0])))
            data.texts.append(record.captions)
            data.labels.append(record.source)
    return data


def load_scenes(seed: int, count: int, side: int, cache: Path, processes: int = 2) -> SceneImages:
    """Make scenes (about 7 ms each on one core), shrunk to ``side`` px, or read them back from ``cache``."""
    seeds = scene_seeds(seed, count)
    pixels, objects = (cache / f"scenes-{seed}-{count}-{side}.{kind}" for kind in ("npy", "json"))
    if not objects.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = np.lib.format.open_memmap(pixels, "w+", np.uint8, (count, side, side, 3))
        boxes = []
        with ProcessPoolExecutor(processes) as pool:
            scenes = pool.map(partial(_scene, side=side), seeds, chunksize=32)
            for i, (image, things) in enumerate(tqdm(scenes, "scenes", count)):
                made[i] = image
                boxes.append(things)
        made.flush()
        objects.write_text(json.dumps(boxes))
    found = [tuple(SceneObject(c, k, tuple(b), r) for c, k, b, r in one) for one in json.loads(objects.read_text())]
    return SceneImages(np.load(pixels, mmap_mode="r"), [draw_facts(scene_rng(seed)) for seed in seeds], found)


def _scene(seed: int, side: int) -> tuple[np.ndarray, list[tuple]]:
    scene = make_scene(seed, size=MADE_SIDE)
    objects = [(thing.category, thing.colour, thing.box, thing.role) for thing in scene.objects]
    return np.asarray(scene.image.resize((side, side), Image.Resampling.BICUBIC)), objects


@dataclass
class NanoData(Dataset):
    """Draws of one kind from both sources.

    Attributes:
        task: ``grounding`` draws scenes as ``{"image", "labels"}``; ``contrastive`` ``{"image", "text", "hard",
            "labels"}``; ``preference`` groups for :class:`src.training.reward.PreferenceCollator`.
        size: number of draws.
        real_share: share of draws from real images, 0..1.
        same_class: of the rejected captions of a real image, the share taken from its own class, 0..1.
        rejected: wrong answers in a group.
        clean_only: reject captions of other images only, no garbled, vague or off-topic text.
        augment: turn, flip and crop real images; turn and flip scenes, and what their captions say of directions.
        twins: share of scenes whose right and nearly right captions use the same words but for what is wrong, 0..1.
        bare: share of texts, right and wrong alike, whose full stop at the end is left out. Captions of real sets
            nearly all have one or nearly all have none; a model that has met no text without one takes it for broken.
    """

    task: Literal["grounding", "contrastive", "preference"]
    size: int
    seed: int
    real: RealImages
    scenes: SceneImages
    real_share: float = 0.6
    same_class: float = 0.25
    rejected: int = 3
    clean_only: bool = False
    augment: bool = True
    twins: float = 0.7
    bare: float = 0.35

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
            sample = self._real(rng, int(rng.integers(len(self.real.pixels))))
        else:
            sample = self._scene(rng, int(rng.integers(len(self.scenes.facts))))
        for key in ("text", "hard", "chosen", "rejected"):
            if isinstance(sample.get(key), str):
                sample[key] = self._bared(sample[key], rng)
            elif key in sample:
                sample[key] = [self._bared(text, rng) for text in sample[key]]
        return sample

    def _bared(self, text: str, rng: np.random.Generator) -> str:
        return text.rstrip(" .") or text if rng.random() < self.bare else text

    def _real(self, rng: np.random.Generator, i: int) -> Sample:
        image = self.real.pixels[i]
        chosen = _draw(rng, self.real.texts[i])
        if self.augment:
            image = turned_crop(image, rng)
        picture = Image.fromarray(image)
        if self.task == "contrastive":
            labels = no_labels(self.scenes.pixels.shape[1] // CELL)
            return {"image": picture, "text": chosen, "labels": labels}
        wrong = [self._wrong(rng, i, chosen) for _ in range(self.rejected)]
        return {"images": [picture], "chosen": chosen, "rejected": wrong}

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
        pixels, facts, objects = self.scenes.pixels[i], self.scenes.facts[i], self.scenes.objects[i]
        if self.augment:
            pixels, facts, objects = turned(pixels, facts, objects, int(rng.integers(4)), bool(rng.integers(2)))
        picture = Image.fromarray(pixels)
        labels = scene_labels(facts, objects, len(pixels) // CELL, MADE_SIDE) if self.task != "preference" else None
        if self.task == "grounding":
            return {"image": picture, "labels": labels}
        kinds = [str(kind) for kind in rng.choice(CORRUPTIONS, 9, replace=False, p=_KIND_SHARES)]
        if self.task == "contrastive":
            chosen, [hard] = self._texts(facts, rng, kinds[:1])
            return {"image": picture, "text": chosen, "hard": hard, "labels": labels}
        chosen, wrong = self._texts(facts, rng, kinds[: self.rejected])
        return {"images": [picture], "chosen": chosen, "rejected": wrong}

    def _texts(self, facts: Facts, rng: np.random.Generator, kinds: Sequence[str]) -> tuple[str, list[str]]:
        """A right caption and one wrong caption of each kind, in some draws all put in the same words."""
        if rng.random() >= self.twins:
            return captions(facts, rng, 1)[0], [corrupt(facts, rng, kind)[0] for kind in kinds]
        chosen, wrong = alike(facts, rng, kinds)
        return chosen, [wrong.get(kind) or corrupt(facts, rng, kind)[0] for kind in kinds]

    def all_texts(self, draws: int = 3000) -> list[str]:
        """Every real caption, and captions of made scenes right and wrong: what a tokeniser is trained on."""
        rng = np.random.default_rng(self.seed)
        texts = [text for several in self.real.texts for text in several]
        for facts in self.scenes.facts[:draws]:
            texts += [*captions(facts, rng, 2), *(corrupt(facts, rng, kind)[0] for kind in CORRUPTIONS)]
        return texts


def _draw(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def turned(
    pixels: np.ndarray, facts: Facts, objects: tuple[SceneObject, ...], quarters: int, mirrored: bool
) -> tuple[np.ndarray, Facts, tuple[SceneObject, ...]]:
    """A scene turned left by quarters of a circle, then perhaps mirrored left to right, with what is true of it."""
    relation = RELATIONS[(RELATIONS.index(facts.relation) - quarters) % 4]
    boxes = [thing.box for thing in objects]
    for _ in range(quarters % 4):
        boxes = [(y1, MADE_SIDE - x2, y2, MADE_SIDE - x1) for x1, y1, x2, y2 in boxes]
    pixels = np.rot90(pixels, quarters)
    if mirrored:
        relation = {"left of": "right of", "right of": "left of"}.get(relation, relation)
        boxes = [(MADE_SIDE - x2, y1, MADE_SIDE - x1, y2) for x1, y1, x2, y2 in boxes]
        pixels = pixels[:, ::-1]
    moved = tuple(replace(thing, box=box) for thing, box in zip(objects, boxes, strict=True))
    return np.ascontiguousarray(pixels), replace(facts, relation=relation), moved
