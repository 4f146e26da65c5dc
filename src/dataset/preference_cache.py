"""Preference sets as one memory-mapped table: checked once, read at random ever after, nothing of it held in memory."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from tqdm import tqdm

from src.dataset.arrow_cache import ERRORS, IMAGE, build_table, checked, image_entry, is_built, open_table
from src.dataset.preference import Preference, PreferenceCounts, PreferenceSet, read_preferences
from src.dataset.records import file_fingerprint
from src.errors import JobError, RecordError

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("images", pa.list_(IMAGE)),
        ("question", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.list_(pa.string())),
        ("kinds", pa.list_(pa.string())),
    ]
)
Check = Callable[[Preference], None]


def load_preferences(
    sets: Sequence[PreferenceSet], cache: Path, check: Check, check_key: str, workers: int = 2
) -> tuple[Dataset, dict[str, PreferenceCounts]]:
    """Return all usable rows of the sets as a table of :data:`SCHEMA`, and what each source held.

    Rows that cannot be used are listed in ``errors.jsonl`` beside the table. A later call with the same files and key
    opens the same table again.

    Args:
        cache: folder for the table. Rows that bring their image as bytes are stored with it, others by path.
        check: is called once for each row, in ``workers`` threads, and raises RecordError for one that cannot be used.
        check_key: changes whenever ``check`` may decide otherwise (processor, limits ...).

    Raises:
        JobError: as :func:`src.dataset.preference.read_preferences`; or no usable row at all.
    """
    what = [(file_fingerprint(one.path), str(one.image_folder)) for one in sets]
    folder = cache / hashlib.blake2b(json.dumps([what, check_key]).encode(), digest_size=8).hexdigest()
    if not is_built(folder):
        _build(sets, folder, check, workers)
    table, found = open_table(folder)
    counts = {source: PreferenceCounts(**held) for source, held in found.items()}
    if not any(held.groups for held in counts.values()):
        raise JobError(f"no usable preference in {', '.join(str(one.path) for one in sets)}; see {folder}/{ERRORS}")
    return table, counts


def split_by_image(table: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Split off about ``share`` of the groups, all those of one image (or, without any, one question or else one
    chosen answer) on one side.

    Which side a group falls on depends on its images alone, so it stays there when data are added.
    """
    held_out: list[bool] = []
    for row in table.select_columns(["images", "question", "chosen"]):
        parts = [image["bytes"] or str(image["path"]).encode() for image in row["images"]]
        parts = parts or [(row["question"] or row["chosen"]).encode()]
        digest = hashlib.blake2b(b"".join(hashlib.blake2b(part).digest() for part in parts), digest_size=8).digest()
        held_out.append(int.from_bytes(digest) < share * 2**64)
    return (
        table.select([i for i, out in enumerate(held_out) if not out]),
        table.select([i for i, out in enumerate(held_out) if out]),
    )


def counts_table(counts: dict[str, PreferenceCounts]) -> str:
    """What each source held, as lines of text with a total of all rows."""
    width = max(map(len, [*counts, "source"]))
    lines = [f"{'source':<{width}}  groups   pairs  text-only  errors"]
    for source, held in counts.items():
        kinds = f" ({', '.join(f'{kind} {n}' for kind, n in sorted(held.errors.items()))})" if held.errors else ""
        numbers = f"{held.groups:>6}  {held.pairs:>6}  {held.text_only:>9}  {sum(held.errors.values()):>6}"
        lines.append(f"{source:<{width}}  {numbers}{kinds}")
    groups, errors = (sum(c.groups for c in counts.values()), sum(sum(c.errors.values()) for c in counts.values()))
    return "\n".join([*lines, f"{groups + errors} rows = {groups} groups + {errors} errors"])


def _build(sets: Sequence[PreferenceSet], folder: Path, check: Check, workers: int) -> None:
    counts: dict[str, PreferenceCounts] = {}

    def items() -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
        for one in sets:
            for item in tqdm(checked(read_preferences(one), check, workers), one.name, unit=" rows"):
                source = one.name if isinstance(item, RecordError) else item.source
                counts.setdefault(source, PreferenceCounts()).add(item)
                if isinstance(item, RecordError):
                    yield source, item
                else:
                    yield source, {**asdict(item), "images": [image_entry(image) for image in item.images]}

    build_table(folder, SCHEMA, items(), lambda: {source: asdict(held) for source, held in counts.items()})
