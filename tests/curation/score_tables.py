"""Small score tables with real images beside them, for the tests of selection and report."""

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from src.curation.rules import Rule
from src.curation.select import select_subset
from src.dataset.records import DataSpec, input_fingerprint

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("row", pa.int64()),
        ("text_index", pa.int32()),
        ("score", pa.float64()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("source", pa.string()),
        ("text_chars", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        *((name, pa.dictionary(pa.int32(), pa.string())) for name in ("template", "model", "position_scheme")),
    ]
)


def pair(row: int, score: float | None, **other: Any) -> dict[str, Any]:
    """A row of the score table; its id has the order of its row number unless given."""
    made = {
        "id": f"pair-{row:05d}",
        "row": row,
        "text_index": 0,
        "score": score,
        "status": "ok",
        "source": "",
        "text_chars": 20,
        "width": 32,
        "height": 32,
        "template": "answer",
        "model": "nano",
        "position_scheme": "mrope",
    }
    return made | other


def failed(row: int, kind: str = "missing_image", **other: Any) -> dict[str, Any]:
    return pair(row, None, status=kind, error=f"no picture for {row}", width=None, height=None, **other)


def write_scores(folder: Path, rows: list[dict[str, Any]], data: dict[str, Any] | None = None, parts: int = 1) -> Path:
    """A finished scoring job in ``folder``; ``data`` are the fields of the DataSpec in its manifest."""
    (folder / "scores").mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    edges = np.linspace(0, len(rows), parts + 1).astype(int)
    for number, (start, stop) in enumerate(pairwise(edges)):
        pq.write_table(table.slice(start, stop - start), folder / "scores" / f"part-{number:05d}.parquet")
    manifest = {
        "data": data or {"path": "data.csv"},
        "input": input_fingerprint(DataSpec(**data)) if data and Path(data["path"]).exists() else {"name": "data.csv"},
        "model": "assets/nano/scorer",
        "template": "answer",
        "position_scheme": "mrope",
        "versions": {"torch": "2.14.0"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "summary.json").write_text("{}", encoding="utf-8")
    return folder


def write_pictures(folder: Path, captions: list[str]) -> dict[str, Any]:
    """A CSV of that many real 32-px pictures with these captions; the fields of its DataSpec."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "data.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "title", "place"])
        for number, caption in enumerate(captions):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            writer.writerow([f"{number}.png", caption, f"place {number}"])
    return {"path": str(folder / "data.csv"), "image_root": str(folder)}


def kept(folder: Path, rows: list[dict], parts: int = 2, **keys) -> list[str]:
    """The ids that a rule keeps of these rows."""
    job = write_scores(folder / "job", rows, parts=parts)
    return pq.read_table(select_subset(job, folder / "out", Rule.from_keys(keys)).path)["id"].to_pylist()
