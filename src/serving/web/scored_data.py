"""A scored data set as the page asks about it: cuts, counts, pages and neighbours, over DuckDB, out of core.

A cut is a number of places: pairs with a score have places from 1, the best first and equal ones by id, as
``select_subset`` orders them, and a rule keeps the first so many. So moving a threshold or a fraction is one look-up,
and every page is a range of places.
"""

# ruff: noqa: S608, the only words of others in the SQL are quoted by DuckDB as values

import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from src.curation.gallery import pair_text, read_rows, thumbnail
from src.curation.page import shorten
from src.curation.rules import Rule
from src.curation.score_table import data_spec, image_limits, one_row, open_scores, read_manifest
from src.curation.select import select_subset
from src.curation.tally import column_values
from src.dataset.records import Record, inspect, read_records
from src.errors import JobError

BINS = 64
PAGE = 12  # cards of a page
NEAR = 4  # neighbours on either side
CAPTION_CHARS = 140
MOST_CHOICES = 200  # of a filter
_BATCH = 4096
_THUMBNAIL, _LARGE = 160, 448  # pixels
SORTS = {
    "best first": "place NULLS LAST, row, text_index",
    "worst first": "place DESC NULLS LAST, row, text_index",
    "nearest the cut": "abs(place - $cut - 0.5) NULLS LAST, row, text_index",
    "longest text": "text_chars DESC NULLS LAST, place",
    "shortest text": "text_chars NULLS LAST, place",
    "order of the data": "row, text_index",
}
_TEXTS = pa.schema(
    [
        ("row", pa.int64()),
        ("text_index", pa.int32()),
        ("text", pa.string()),
        ("paths", pa.list_(pa.string())),
        ("class", pa.string()),
    ]
)


@dataclass(frozen=True)
class Filters:
    """Which pairs are shown; "" is any. ``text`` must occur in the pair's text, whatever the case of letters."""

    source: str = ""
    label: str = ""
    status: str = ""
    text: str = ""

    def sql(self) -> tuple[str, dict[str, str]]:
        """The condition and its values."""
        given = {"source": self.source, "label": self.label, "status": self.status, "words": self.text.strip().lower()}
        tests = {
            "source": "source = $source",
            "label": "class = $label",
            "status": "status = $status",
            "words": "contains(lower(text), $words)",
        }
        used = {name: value for name, value in given.items() if value}
        return " AND ".join([tests[name] for name in used] or ["true"]), used


class ScoredData:
    """The table of a scoring job beside the texts of its data set.

    Scores can be looked through at once; texts are read in the background (``reading``), and with them comes what
    needs them: the filters by text and by class, and quick pages of data whose files cannot be entered in the middle.

    Args:
        scores_dir: folder that score_dataset.py wrote.
        class_column: column of the data set to filter by.

    Raises:
        JobError: no finished score table, or none of its pairs has a score.
    """

    def __init__(self, scores_dir: str | Path, class_column: str | None = None):
        self.folder = Path(scores_dir)
        self.class_column = class_column
        manifest = read_manifest(scores_dir)
        self._root: Path | None = None
        self._spec, self._limits = data_spec(manifest), image_limits(manifest)
        with suppress(JobError):  # scores can be looked at without their data
            self._root = inspect(self._spec).root
        self._open = ExitStack()
        self._temporary = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="scored-")))
        self._db = self._open.enter_context(open_scores(scores_dir, self._temporary))
        self._db.execute(
            """CREATE TABLE ranked AS SELECT id, row, text_index, score, status, error, coalesce(source, '') AS source,
            text_chars, width, height, CASE WHEN status = 'ok' THEN
                row_number() OVER (ORDER BY status <> 'ok', score DESC, id, row, text_index) END AS place FROM scores"""
        )
        self._db.execute(
            """CREATE VIEW pairs AS SELECT *, NULL::VARCHAR AS text, NULL::VARCHAR[] AS paths, NULL::VARCHAR AS class
            FROM ranked"""
        )
        self.pairs, self.ok, low, high = one_row(
            self._db,
            """SELECT count(*), count(place), min(score) FILTER (place IS NOT NULL),
            max(score) FILTER (place IS NOT NULL) FROM ranked""",
        )
        if not self.ok:
            raise JobError(f"no pair of {scores_dir} has a score")
        self.low, self.high = float(low), float(high)
        self.sources, self.statuses = self._choices("source"), self._choices("status")
        self.classes: list[str] = []
        self.reading: str | None = "reading the texts …"
        self._cards = lru_cache(maxsize=4096)(self._picture)
        self._reader = threading.Thread(target=self._read_texts, name="texts", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Let go of the files."""
        self._reader.join()
        self._open.close()

    def wait(self) -> "ScoredData":
        """Return when the texts have been read."""
        self._reader.join()
        return self

    def quota(self, fraction: float) -> int:
        """How many places the rule ``fraction`` keeps."""
        return min(self.ok, max(1, int(Decimal(str(fraction)) * self.ok)))

    def above(self, threshold: float) -> int:
        """How many places the rule ``threshold`` keeps."""
        return self._rows("SELECT count(*) AS n FROM ranked WHERE place IS NOT NULL AND score >= $t", t=threshold)[0][
            "n"
        ]

    def score_at(self, cut: int) -> float:
        """The lowest score of the first ``cut`` places."""
        found = self._rows("SELECT score FROM ranked WHERE place = $place", place=max(1, cut))
        return float(found[0]["score"])

    def histogram(self, filters: Filters) -> list[int]:
        """Pairs with a score that pass the filters, in ``BINS`` equal bins from the lowest to the highest score."""
        where, values = filters.sql()
        width = (self.high - self.low) / BINS or 1.0
        rows = self._rows(
            f"""SELECT least({BINS - 1}, floor((score - $low) / $width))::INT AS bin, count(*) AS n
            FROM pairs WHERE place IS NOT NULL AND {where} GROUP BY 1""",
            low=self.low,
            width=width,
            **values,
        )
        bins = dict.fromkeys(range(BINS), 0) | {row["bin"]: row["n"] for row in rows}
        return list(bins.values())

    def counts(self, filters: Filters, cut: int) -> tuple[int, int]:
        """Pairs that pass the filters and are kept, and that pass and are not."""
        where, values = filters.sql()
        [found] = self._rows(
            f"SELECT count(*) FILTER (place <= $cut) AS kept, count(*) AS shown FROM pairs WHERE {where}",
            cut=cut,
            **values,
        )
        return found["kept"], found["shown"] - found["kept"]

    def page(self, filters: Filters, cut: int, kept: bool, sort: str, number: int) -> list[dict[str, Any]]:
        """Cards of a page of what is kept, or of what is not."""
        where, values = filters.sql()
        side = "place <= $cut" if kept else "NOT coalesce(place <= $cut, false)"
        rows = self._rows(
            f"SELECT * FROM pairs WHERE {side} AND {where} ORDER BY {SORTS[sort]} LIMIT {PAGE} OFFSET $skip",
            cut=cut,
            skip=PAGE * number,
            **values,
        )
        return self._as_cards(rows)

    def record(self, row: int, text_index: int) -> dict[str, Any] | None:
        """All that is known of a pair, with its image and its neighbours by score; None if there is no such pair."""
        found = self._rows("SELECT * FROM pairs WHERE row = $row AND text_index = $k", row=row, k=text_index)
        if not found:
            return None
        [pair], [card] = found, self._as_cards(found, _LARGE)
        near: list[dict[str, Any]] = []
        if place := pair["place"]:
            near = self._rows(
                "SELECT * FROM pairs WHERE place BETWEEN $first AND $last ORDER BY place",
                first=place - NEAR,
                last=place + NEAR,
            )
        neighbours = [
            each | {"here": (each["row"], each["text_index"]) == (row, text_index)} for each in self._as_cards(near)
        ]
        return pair | card | {"text": card["whole"], "neighbours": neighbours}

    def export(self, rule: Rule) -> Path:
        """Write what a rule keeps, as ``select_subset`` does, and return a zip file of its ids and the rule.

        Raises:
            JobError: the rule keeps nothing.
        """
        folder = Path(tempfile.mkdtemp(dir=self._temporary))
        selection = select_subset(self.folder, folder / "subset", rule)
        packed = folder / "subset.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in (selection.path, selection.path.with_name("rule.yaml")):
                archive.write(path, f"subset/{path.name}")
        return packed

    def _choices(self, column: str) -> list[str]:
        rows = self._rows(
            f"""SELECT {column} AS value FROM pairs WHERE {column} <> '' GROUP BY 1
            ORDER BY count(*) DESC, 1 LIMIT {MOST_CHOICES}"""
        )
        return [row["value"] for row in rows]

    def _rows(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        """Rows of a query, from a cursor of its own, so that any number of threads may ask."""
        try:
            with self._db.cursor() as cursor:
                asked = cursor.execute(sql, values)
                names = [column[0] for column in asked.description]
                return [dict(zip(names, row, strict=True)) for row in asked.fetchall()]
        except duckdb.Error as error:
            raise JobError(f"cannot use the score table in {self.folder}: {str(error).splitlines()[0]}") from error

    def _as_cards(self, rows: list[dict[str, Any]], side: int = _THUMBNAIL) -> list[dict[str, Any]]:
        unread = {row["row"] for row in rows if row["text"] is None or row["paths"] is None}
        records = read_rows(self._spec, unread) if unread else {}
        cards = []
        for row in rows:
            record = records.get(row["row"])
            text = row["text"] if row["text"] is not None else pair_text(record, row["text_index"]) if record else ""
            paths = row["paths"]
            image = self._drawn(record, side) if paths is None else self._cards(row["row"], tuple(paths), side)
            known = {key: row[key] for key in ("row", "text_index", "score", "status")}
            cards.append(
                known | {"text": shorten(text, CAPTION_CHARS), "title": shorten(text, 600), "whole": text} | image
            )
        return cards

    def _picture(self, row: int, paths: tuple[str, ...], side: int) -> dict[str, str]:
        return self._drawn(Record("", row, paths), side)

    def _drawn(self, record: Record | None, side: int) -> dict[str, str]:
        return thumbnail(record, self._root, side, self._limits)

    def _read_texts(self) -> None:
        try:
            with self._db.cursor() as cursor:
                reader = pa.RecordBatchReader.from_batches(_TEXTS, self._batches())
                cursor.register("read", reader)
                cursor.execute(
                    """CREATE TABLE told AS SELECT ranked.*, text, paths, coalesce(class, '') AS class
                    FROM ranked LEFT JOIN read USING (row, text_index) ORDER BY place"""
                )
                cursor.execute("CREATE OR REPLACE VIEW pairs AS SELECT * FROM told")
            self.classes = self._choices("class")
            self.reading = None
        except (JobError, duckdb.Error, pa.ArrowException) as error:
            self.reading = f"the texts cannot be read: {error}"

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """The texts of all pairs, a batch at a time; paths of images only where they are files."""
        labels = column_values(self._spec.path, self.class_column) if self.class_column else repeat(None)
        rows = (
            {"row": record.row, "text_index": k, "text": pair_text(record, k), "paths": _paths(record), "class": label}
            for record, label in zip(read_records(self._spec), labels, strict=bool(self.class_column))
            for k in range(max(1, len(record.texts)))
        )
        read = 0
        while batch := list(islice(rows, _BATCH)):
            yield pa.RecordBatch.from_pylist(batch, schema=_TEXTS)
            read += len(batch)
            self.reading = f"reading the texts: {read:,} of {self.pairs:,} …"


def _paths(record: Record) -> list[str] | None:
    """Paths of the images of a record; None where its images, or their errors, lie in the data."""
    if record.error or not all(isinstance(image, str | Path) for image in record.images):
        return None
    return [str(image) for image in record.images]
