"""Galleries of a page: pairs of the table with their images, a fixed number of cards whatever the table's size."""

import base64
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
from PIL import Image

from src.curation.page import CAPTION_CHARS, shorten
from src.dataset.images import ImageLimits, open_image
from src.dataset.records import DataSpec, Record, pick_records, resolve_root
from src.errors import JobError, RecordError

THUMBNAIL_SIDE = 200  # pixels
TITLE_CHARS = 2000  # of the full text shown on hovering


@dataclass(frozen=True)
class Group:
    """Pairs to show side by side: those of the table ``pairs`` that fulfil ``where``, in this ``order`` (SQL, ours).

    ``values`` stand for the question marks of ``where``; ``state`` is the word and the colour of the group's tag.
    """

    state: str
    heading: str
    where: str
    order: str
    values: tuple[Any, ...] = ()


def galleries(
    db: duckdb.DuckDBPyConnection, spec: DataSpec, groups: Sequence[Group], size: int
) -> list[dict[str, Any]]:
    """The groups of cards, at most one card of a record in a group so that five captions show five images.

    Reads the table ``pairs`` (row, text_index, id, score, source). A record or image that cannot be read is a card
    with the reason.
    """
    picked = []
    for group in groups:
        columns = "row, text_index, id, score, source"
        query = f"SELECT {columns} FROM pairs WHERE {group.where} ORDER BY {group.order} LIMIT ?"  # noqa: S608, ours
        rows = db.execute(query, [*group.values, 8 * size]).fetchall()
        first_of_row: dict[int, Any] = {}
        for found in rows:
            first_of_row.setdefault(found[0], found)
        picked.append((group, list(first_of_row.values())[:size]))
    records = read_rows(spec, {row[0] for _, rows in picked for row in rows})
    root = resolve_root(spec) if records else None
    thumbnails: dict[int, dict[str, str]] = {}
    shown = []
    for group, rows in picked:
        cards = []
        for number, text_index, name, score, source in rows:
            record = records.get(number)
            if number not in thumbnails:
                thumbnails[number] = thumbnail(record, root)
            text = pair_text(record, text_index) if record else ""
            cards.append(
                {
                    "id": name,
                    "score": score,
                    "source": source,
                    "text": shorten(text, CAPTION_CHARS),
                    "title": shorten(text, TITLE_CHARS),
                    **thumbnails[number],
                }
            )
        shown.append({"state": group.state, "heading": group.heading, "cards": cards})
    return shown


def read_rows(spec: DataSpec, rows: set[int]) -> dict[int, Record]:
    """Those records of ``rows`` that can be read, by row number; none when the data has been moved away."""
    without_ids = replace(spec, id_column=None)  # records are found by row: no need to compare all ids again
    found: dict[int, Record] = {}
    with suppress(JobError):
        for record in pick_records(without_ids, rows):
            found[record.row] = record
    return found


def thumbnail(
    record: Record | None, root: Path | None, side: int = THUMBNAIL_SIDE, limits: ImageLimits | None = None
) -> dict[str, str]:
    """``image``: a JPEG as data URI, or ``missing``: the reason why there is none."""
    try:
        if record is None:
            raise RecordError("missing_record", "the record can no longer be read")
        if record.error:
            raise record.error
        if not record.images:
            raise RecordError("missing_image", "the record has no image")
        image = open_image(record.images[0], root, limits)
    except RecordError as error:
        return {"missing": f"{error.kind}: {shorten(str(error), CAPTION_CHARS)}"}
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80, optimize=True)
    return {"image": "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()}


def pair_text(record: Record, text_index: int) -> str:
    """The text of a pair: a caption, or all that a conversation says."""
    if text_index < len(record.texts):
        return record.texts[text_index]
    return " · ".join(turn["content"].replace("<image>", "").strip() for turn in record.turns)
