"""Captioned images as CLIP trains on them: which pairs, as one checked table, and batches of them."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset as Table
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from src.curation.select import kept_rows
from src.dataset import rows
from src.dataset.arrow_cache import ERRORS, IMAGE, build_table, checked, image_entry, is_built, open_table
from src.dataset.augment import turned_crop
from src.dataset.files import DataFiles
from src.dataset.images import image_key, open_image
from src.dataset.records import (
    DataSpec,
    Layout,
    Record,
    file_fingerprint,
    input_fingerprint,
    inspect,
    read_records,
)
from src.errors import JobError, RecordError
from src.training.clip_config import Data
from src.training.selected import selected_data

SCHEMA = pa.schema([("id", pa.string()), ("image", IMAGE), ("captions", pa.list_(pa.string()))])
Kept = Mapping[int, Sequence[int] | None]  # row -> numbers of its captions, None for all of them


@dataclass
class Pairs(Dataset):
    """Pairs of an image and a caption, ``{"image", "text", "key", "view"}``; the last seeds a random view.

    Attributes:
        table: rows of ``SCHEMA``.
        root: folder that image paths are relative to and must stay inside.
        captions: ``each`` makes every caption of every record a pair; ``drawn`` every record one, with a caption drawn
            anew each epoch.
        seed: of the draw.
        summary: what the data held, in words.
    """

    table: Table
    root: Path
    captions: str
    seed: int
    summary: str

    def __post_init__(self) -> None:
        self.epoch = 0
        counts = pa.compute.list_value_length(self.table.data.column("captions")).to_numpy()
        if self.captions == "drawn":
            counts = np.minimum(counts, 1)
        self._record = np.repeat(np.arange(len(counts)), counts)
        self._caption = np.arange(len(self._record)) - np.repeat(np.cumsum(counts) - counts, counts)

    def __len__(self) -> int:
        return len(self._record)

    def set_epoch(self, epoch: int) -> None:
        """Is called before each epoch (:class:`src.training.clip.TellEpoch`)."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.table[int(self._record[index])]
        number = int(self._caption[index])
        if self.captions == "drawn":
            number = int(np.random.default_rng([self.seed, self.epoch, index]).integers(len(row["captions"])))
        image = row["image"] if row["image"]["bytes"] is not None else row["image"]["path"]
        key = image_key(image, self.root)
        return {"image": image, "text": row["captions"][number], "key": key, "view": [self.seed, self.epoch, index]}


@dataclass
class ClipCollator:
    """Batches of :class:`Pairs`; an image that several pairs share is decoded once.

    Attributes:
        processor: of a ``CLIPModel``.
        max_tokens: where texts are cut.
        augment: turn, flip and crop images (:func:`src.dataset.augment.turned_crop`).
    """

    processor: Any
    max_tokens: int
    root: Path | None = None
    augment: bool = False

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return ``pixel_values`` of distinct images, ``image_index`` (pairs,), ``input_ids``, ``attention_mask`` and
        ``groups`` (pairs, 2), numbers that are equal for equal images and for equal texts."""
        keys = [pair["key"] for pair in pairs]
        sources = {key: pair["image"] for key, pair in zip(keys, pairs, strict=True)}
        places = {key: place for place, key in enumerate(sources)}
        views = {
            pair["key"]: pair["view"] for pair in reversed(pairs)
        }  # a shared image is seen as its first pair has it
        images = [self._open(source, views[key]) for key, source in sources.items()]
        texts = [pair["text"] for pair in pairs]
        cut = {"padding": True, "truncation": True, "max_length": self.max_tokens}
        tokens = self.processor.tokenizer(texts, return_tensors="pt", **cut)
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "pixel_values": self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"],
            "image_index": torch.tensor([places[key] for key in keys]),
            "groups": torch.tensor([[_number(k), _number(t)] for k, t in zip(keys, texts, strict=True)]),
        }

    def _open(self, source: Any, view: Sequence[int]) -> Image.Image:
        image = open_image(source, self.root)
        if not self.augment:
            return image
        return Image.fromarray(turned_crop(np.asarray(image), np.random.default_rng(view)))


def load_pairs(data: Data, seed: int) -> Pairs:
    """The pairs that the configuration asks for, every image of them decoded once before training starts.

    Records that cannot be used are counted, and listed in ``errors.jsonl`` in the cache. A later call with the same
    data opens the same table.

    Raises:
        JobError: no data, a column or a subset that is not there, a share out of range, or nothing left.
    """
    if data.captions not in ("each", "drawn"):
        raise JobError(f"data.captions is {data.captions!r}; use one of each, drawn")
    if data.subset is not None and data.filter_record:
        raise JobError("data.subset and data.filter_record both select; give one")
    given = DataSpec(data.csv_path or "", data.image_path, data.image_column, data.target_column)
    spec, subset = selected_data(given, data.subset, "data.csv_path")
    what: list[Any] = [input_fingerprint(spec), vars(spec), file_fingerprint(subset) if subset else None]
    what += [data.filter_column, data.save_top_percent] if data.filter_record else []
    folder = Path(data.cache_dir, hashlib.blake2b(repr(what).encode(), digest_size=8).hexdigest())
    layout = inspect(spec)
    # Images that were missing or broken may be whole by now; the fingerprint is of the files of the data set alone.
    if not is_built(folder) or set(open_table(folder)[1]["errors"]) - {"empty_text", "bad_record", "duplicate_id"}:
        _build(spec, layout, *_kept(data, layout, subset), folder, max(1, data.num_workers))
    table, counts = open_table(folder)
    errors = ", ".join(f"{kind} {number}" for kind, number in sorted(counts["errors"].items()))
    total = counts["images"] + sum(counts["errors"].values())
    summary = (
        f"{counts['selected']}{total:,} records = {counts['images']:,} usable with {counts['captions']:,} captions"
        f" + {total - counts['images']:,} errors" + (f" ({errors}; see {folder / ERRORS})" if errors else "")
    )
    if not counts["images"]:
        raise JobError(f"nothing to train on: {summary}")
    return Pairs(table, layout.root, data.captions, seed, summary)


def _kept(data: Data, layout: Layout, subset: Path | None) -> tuple[Kept | None, str]:
    """Which records and captions are to be used (None: all), and that in words."""
    if subset is not None:
        chosen = {row: [number for number, _ in scores] for row, scores in kept_rows(subset)}
        return chosen, f"{sum(map(len, chosen.values())):,} pairs of {subset}: "
    if not data.filter_record:
        return None, ""
    best, without = _top(layout.files, data.filter_column, data.save_top_percent)
    said = f"{len(best):,} rows of {layout.files.count_all():,} by {data.filter_column}"
    return dict.fromkeys(best), said + (f", {without:,} without a number" if without else "") + ": "


def _top(files: DataFiles, column: str, share: float) -> tuple[list[int], int]:
    """Rows of the highest values, ties by the order of rows, and how many rows have no finite value."""
    if not 0 < share <= 1:
        hint = f"; did you mean {share / 100:g}?" if 1 < share <= 100 else ""
        raise JobError(f"data.save_top_percent is a fraction, above 0 and at most 1, not {share:g}{hint}")
    if column not in (present := rows.column_names(files.paths[0])):
        raise JobError(f"data.filter_column: {files.paths[0]} has no column {column}; it has {', '.join(present)}")
    values = np.array([_value(row, column) for *_, row in files.iter_rows([column])])
    good = np.flatnonzero(np.isfinite(values))
    best = good[np.argsort(-values[good], kind="stable")]
    return sorted(best[: int(Decimal(str(share)) * len(good))].tolist()), len(values) - len(good)


def _value(row: Any, column: str) -> float:
    try:
        return float(row[column]) if isinstance(row, Mapping) else math.nan
    except (KeyError, TypeError, ValueError):
        return math.nan


def _build(spec: DataSpec, layout: Layout, kept: Kept | None, said: str, folder: Path, workers: int) -> None:
    counts = {"images": 0, "captions": 0}
    errors: Counter[str] = Counter()

    def check(record: Record) -> None:
        if record.error is not None:
            raise record.error
        if record.turns:
            raise RecordError("bad_record", "a conversation is no caption")
        if len(record.images) != 1:
            raise RecordError("bad_record", f"CLIP takes one image a caption, not {len(record.images)}")
        open_image(record.images[0], layout.root)

    def items() -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
        wanted = (record for record in read_records(spec, layout=layout) if kept is None or record.row in kept)
        total = layout.files.count_all() if kept is None else len(kept)
        for record in tqdm(checked(wanted, check, workers), "checking images", total, unit=" records"):
            item: Any = record
            if isinstance(record, Record):
                numbers = None if kept is None else kept[record.row]
                captions = (
                    record.captions if numbers is None else [record.texts[k] for k in numbers if k < len(record.texts)]
                )
                item = {"id": record.id, "image": image_entry(record.images[0]), "captions": captions}
                if not captions:
                    item = RecordError("empty_text", f"{record.id}: no caption with a letter or digit")
            if isinstance(item, RecordError):
                errors[item.kind] += 1
            else:
                counts["images"] += 1
                counts["captions"] += len(item["captions"])
            yield "", item

    build_table(folder, SCHEMA, items(), lambda: {**counts, "errors": dict(errors), "selected": said})


def _number(value: str) -> int:
    digest = hashlib.blake2b(value.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)
