"""Captioned images as CLIP trains on them: which pairs, as one checked table, and batches of them."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

from src.curation.score_table import data_spec, read_manifest
from src.curation.select import kept_rows, scores_of
from src.dataset import rows
from src.dataset.arrow_cache import ERRORS, IMAGE, build_table, checked, image_entry, is_built, open_table
from src.dataset.augment import turned_crop
from src.dataset.files import find_files
from src.dataset.images import image_key, open_image
from src.dataset.records import DataSpec, Record, count_records, input_fingerprint, read_records, resolve_root
from src.errors import JobError, RecordError
from src.training.clip_config import Data

SCHEMA = pa.schema([("id", pa.string()), ("image", IMAGE), ("captions", pa.list_(pa.string()))])
Kept = Mapping[int, Sequence[int] | None]  # row -> numbers of its captions, None for all of them


@dataclass
class Pairs(Dataset):
    """Pairs of an image and a caption, ``{"image", "text", "key"}``.

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
        """Is called by the data loader before each epoch."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.table[int(self._record[index])]
        number = int(self._caption[index])
        if self.captions == "drawn":
            number = int(np.random.default_rng([self.seed, self.epoch, index]).integers(len(row["captions"])))
        image = row["image"] if row["image"]["bytes"] is not None else row["image"]["path"]
        return {"image": image, "text": row["captions"][number], "key": image_key(image, self.root)}


@dataclass
class ClipCollator:
    """Batches of :class:`Pairs`; an image that several pairs share is decoded once.

    Attributes:
        processor: of a ``CLIPModel``.
        augment: turn, flip and crop images (:func:`src.dataset.augment.turned_crop`).
    """

    processor: Any
    root: Path | None = None
    augment: bool = False

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return ``pixel_values`` of distinct images, ``image_index`` (pairs,), ``input_ids``, ``attention_mask`` and
        ``groups`` (pairs, 2), numbers that are equal for equal images and for equal texts."""
        keys = [pair["key"] for pair in pairs]
        sources = {key: pair["image"] for key, pair in zip(keys, pairs, strict=True)}
        places = {key: place for place, key in enumerate(sources)}
        images = [self._open(source) for source in sources.values()]
        texts = [pair["text"] for pair in pairs]
        tokens = self.processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "pixel_values": self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"],
            "image_index": torch.tensor([places[key] for key in keys]),
            "groups": torch.tensor([[_number(k), _number(t)] for k, t in zip(keys, texts, strict=True)]),
        }

    def _open(self, source: Any) -> Image.Image:
        image = open_image(source, self.root)
        if not self.augment:
            return image
        # torch's generator is seeded for each worker and epoch by the data loader
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        return Image.fromarray(turned_crop(np.asarray(image), rng))


def load_pairs(data: Data, seed: int) -> Pairs:
    """The pairs that the configuration asks for, every image of them decoded once before training starts.

    Records that cannot be used are counted, and listed in ``errors.jsonl`` in the cache. A later call with the same
    data opens the same table.

    Raises:
        JobError: no data, a column or a subset that is not there, a share out of range, or nothing left.
    """
    if data.captions not in ("each", "drawn"):
        raise JobError(f"data.captions is {data.captions!r}; use one of each, drawn")
    spec, kept, said = _selected(data)
    what = [input_fingerprint(spec), vars(spec), kept and sorted(kept.items())]
    folder = Path(data.cache_dir, hashlib.blake2b(repr(what).encode(), digest_size=8).hexdigest())
    root = resolve_root(spec)
    if not is_built(folder):
        _build(spec, root, kept, folder, max(1, data.num_workers))
    table, counts = open_table(folder)
    errors = ", ".join(f"{kind} {number}" for kind, number in sorted(counts["errors"].items()))
    total = counts["images"] + sum(counts["errors"].values())
    summary = (
        f"{said}{total:,} records = {counts['images']:,} usable with {counts['captions']:,} captions"
        f" + {total - counts['images']:,} errors" + (f" ({errors}; see {folder / ERRORS})" if errors else "")
    )
    if not counts["images"]:
        raise JobError(f"nothing to train on: {summary}")
    return Pairs(table, root, data.captions, seed, summary)


def _selected(data: Data) -> tuple[DataSpec, Kept | None, str]:
    """The data set, which of its records and captions are to be used (None: all), and that in words."""
    spec = DataSpec(data.csv_path or "", data.image_path, data.image_column, data.target_column)
    if data.subset is not None:
        if data.filter_record:
            raise JobError("data.subset and data.filter_record both select; give one")
        subset = Path(data.subset, "subset_ids.parquet") if Path(data.subset).is_dir() else Path(data.subset)
        if not subset.is_file():
            raise JobError(f"data.subset: no such file: {subset}")
        if data.csv_path is None:
            scores = scores_of(subset)
            if scores is None:
                raise JobError(f"data.subset: {subset} does not say what it was cut from; give data.csv_path too")
            scored = data_spec(read_manifest(scores))
            spec = replace(scored, image_root=data.image_path or scored.image_root)
        chosen = {row: [number for number, _ in scores] for row, scores in kept_rows(subset)}
        return spec, chosen, f"{sum(map(len, chosen.values())):,} pairs of {subset}: "
    if data.csv_path is None:
        raise JobError("give data.csv_path, or data.subset of a selection")
    if not data.filter_record:
        return spec, None, ""
    best, without = _top(spec, data.filter_column, data.save_top_percent)
    said = f"{len(best):,} rows of {count_records(spec):,} by {data.filter_column}"
    return spec, dict.fromkeys(best), said + (f", {without:,} without a number" if without else "") + ": "


def _top(spec: DataSpec, column: str, share: float) -> tuple[list[int], int]:
    """Rows of the highest values, ties by the order of rows, and how many rows have no finite value."""
    if not 0 < share <= 1:
        hint = f"; did you mean {share / 100:g}?" if 1 < share <= 100 else ""
        raise JobError(f"data.save_top_percent is a fraction, above 0 and at most 1, not {share:g}{hint}")
    files = find_files(spec.path)
    if column not in (present := rows.column_names(files.paths[0])):
        raise JobError(f"data.filter_column: {spec.path} has no column {column}; it has {', '.join(present)}")
    values = np.array([_value(row, column) for *_, row in files.iter_rows([column])])
    good = np.flatnonzero(np.isfinite(values))
    best = good[np.argsort(-values[good], kind="stable")]
    return sorted(best[: int(Decimal(str(share)) * len(good))].tolist()), len(values) - len(good)


def _value(row: Any, column: str) -> float:
    try:
        return float(row[column]) if isinstance(row, Mapping) else math.nan
    except (KeyError, TypeError, ValueError):
        return math.nan


def _build(spec: DataSpec, root: Path, kept: Kept | None, folder: Path, workers: int) -> None:
    counts = {"images": 0, "captions": 0}
    errors: Counter[str] = Counter()

    def check(record: Record) -> None:
        if record.error is not None:
            raise record.error
        if record.turns:
            raise RecordError("bad_record", "a conversation is no caption")
        if len(record.images) != 1:
            raise RecordError("bad_record", f"CLIP takes one image a caption, not {len(record.images)}")
        open_image(record.images[0], root)

    def items() -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
        wanted = (record for record in read_records(spec) if kept is None or record.row in kept)
        total = count_records(spec) if kept is None else len(kept)
        for record in tqdm(checked(wanted, check, workers), "checking images", total, unit=" records"):
            item: Any = record
            if isinstance(record, Record):
                numbers = None if kept is None else kept[record.row]
                captions = record.captions if numbers is None else [record.texts[number] for number in numbers]
                item = {"id": record.id, "image": image_entry(record.images[0]), "captions": captions}
                if not captions:
                    item = RecordError("empty_text", f"{record.id}: no caption with a letter or digit")
            if isinstance(item, RecordError):
                errors[item.kind] += 1
            else:
                counts["images"] += 1
                counts["captions"] += len(item["captions"])
            yield "", item

    build_table(folder, SCHEMA, items(), lambda: {**counts, "errors": dict(errors)})


def _number(value: str) -> int:
    digest = hashlib.blake2b(value.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)
