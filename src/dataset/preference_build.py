"""Make preference sets from captioned images: the image's own caption against wrong ones of several kinds.

Kinds are those of :data:`src.dataset.caption_edits.EDITS`, and captions of other images: ``other_class`` (an image of
another class), ``same_class`` and ``nearest`` (the most alike image).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.dataset.caption_edits import EDITS, edit_caption
from src.dataset.scene_facts import draw_facts
from src.dataset.scene_text import CORRUPTIONS, alike, captions, corrupt
from src.dataset.scenes import make_scene, png_bytes, scene_rng

OTHER_IMAGES = ("other_class", "same_class", "nearest")
CAPTION_KINDS = (*OTHER_IMAGES, *EDITS)
SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("question", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.list_(pa.string())),
        ("kinds", pa.list_(pa.string())),
        ("source", pa.string()),
    ]
)
_ROW_GROUP = 256

Group = dict[str, Any]


def caption_groups(
    texts: Sequence[Sequence[str]],
    labels: Sequence[str],
    kinds: Sequence[str],
    seed: int,
    nearest: Sequence[int] = (),
) -> Iterator[Group]:
    """Yield per image ``chosen``, one of its captions, with ``rejected`` and their ``kinds``, those that apply.

    Args:
        texts: captions of each image; a wrong caption is never one of the image's own.
        labels: class of each image; without any (all ``""``) every other image counts as of another class.
        kinds: of :data:`CAPTION_KINDS`.
        nearest: number of the most alike other image of each; needed for the kind ``nearest``.
    """
    names = np.array(labels)
    by_class = {name: np.flatnonzero(names == name) for name in np.unique(names)} if names.any() else {}
    others = {name: np.flatnonzero(names != name) for name in by_class}
    for i, own in enumerate(texts):
        rng = np.random.default_rng([seed, i])
        pools = {
            "other_class": others.get(names[i], np.arange(len(texts))),
            "same_class": by_class.get(names[i], np.arange(0)),
            "nearest": np.array(nearest[i : i + 1], dtype=int),
        }
        chosen = _draw(rng, own)
        wrong: dict[str, str] = {}
        for kind in kinds:
            text = (
                edit_caption(chosen, kind, rng) if kind in EDITS else foreign_caption(rng, pools[kind], texts, set(own))
            )
            if text is not None and text not in own:
                wrong[kind] = text
        yield {"chosen": chosen, "rejected": list(wrong.values()), "kinds": list(wrong)}


def scene_groups(
    seeds: Iterable[int],
    kinds: Sequence[str] = CORRUPTIONS,
    size: int = 224,
    alike_share: float = 1.0,
    images: bool = True,
) -> Iterator[Group]:
    """Yield per made scene its PNG as ``image``, a true caption, and a corrupted one of each kind.

    Args:
        size: side of the images in pixels.
        alike_share: share of scenes, 0..1, whose near misses use the words of the true caption but for what is wrong
            (:func:`src.dataset.scene_text.alike`); the others' captions are worded each on its own.
        images: False leaves them out, and the groups are about text alone.
    """
    for seed in seeds:
        rng = scene_rng(seed).spawn(1)[0]
        image = None
        if images:
            scene = make_scene(seed, size=size)
            image, facts = {"bytes": png_bytes(scene.image), "path": f"{seed:08d}.png"}, scene.facts
        else:
            facts = draw_facts(scene_rng(seed))
        if rng.random() < alike_share:
            chosen, wrong = alike(facts, rng, kinds)
        else:
            chosen, wrong = captions(facts, rng, 1)[0], {kind: corrupt(facts, rng, kind)[0] for kind in kinds}
        wrong = {kind: text for kind, text in wrong.items() if text != chosen}
        yield {
            "image": image,
            "chosen": chosen,
            "rejected": list(wrong.values()),
            "kinds": list(wrong),
            "source": facts.kind,
        }


def most_alike(features: np.ndarray, block: int = 1024) -> np.ndarray:
    """Return ``(images,)`` number of the nearest other image by cosine; features are ``(images, dim)``."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    found = []
    for start in range(0, len(unit), block):
        likeness = unit[start : start + block] @ unit.T
        likeness[np.arange(len(likeness)), np.arange(start, start + len(likeness))] = -2
        found.append(likeness.argmax(1))
    return np.concatenate(found)


def write_groups(groups: Iterable[Mapping[str, Any]], path: Path) -> dict[str, int]:
    """Write groups with at least one rejected answer as Parquet, and return how many wrong answers of each kind."""
    counts: dict[str, int] = {}
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for group in groups:
            if group["rejected"]:
                rows.append({"question": "", **group})
            for kind in group["kinds"]:
                counts[kind] = counts.get(kind, 0) + 1
            if len(rows) == _ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows.clear()
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    part.replace(path)
    return counts


def foreign_caption(
    rng: np.random.Generator, pool: np.ndarray, texts: Sequence[Sequence[str]], own: set[str]
) -> str | None:
    """A caption of an image in the pool that is none of ``own``, or None if a few draws find none."""
    for _ in range(16 if len(pool) else 0):
        text = _draw(rng, texts[int(rng.choice(pool))])
        if text not in own:
            return text
    return None


def _draw(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]
