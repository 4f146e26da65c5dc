"""The report of a selection: one HTML file that opens anywhere, asks the network for nothing, and shows the data.

What grows with the table (histogram, sources, errors) is summed up by DuckDB; what is shown one by one (gallery,
points) is cut to a fixed number before it reaches Python.
"""

import base64
import io
import json
import math
import shlex
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from src.curation.report_charts import POINTS, score_by_length, score_histogram
from src.curation.select import data_spec, one_row, open_scores, read_manifest
from src.dataset.images import open_image
from src.dataset.records import DataSpec, Record, pick_records, resolve_root
from src.errors import JobError, RecordError

THUMBNAIL_SIDE = 200  # pixels
CAPTION_CHARS = 180
TITLE_CHARS = 2000  # of the full text shown on hovering
SOURCES = 30

# (state, heading, order of the pairs); from the best to the worst, as they stand on the page
GROUPS = (
    ("kept", "Highest scores", "score DESC, id"),
    ("kept", "A random handful of what was kept", "hash(id), id"),
    ("kept", "Just above the cut", "score, id"),
    ("dropped", "Just below the cut", "score DESC, id"),
    ("dropped", "A random handful of what was dropped", "hash(id), id"),
    ("dropped", "Lowest scores", "score, id"),
)


def write_report(scores_dir: str | Path, subset: str | Path, output: str | Path, gallery: int = 12) -> Path:
    """Writes the report on ``subset`` (a ``subset_ids.parquet``) to the HTML file ``output`` and returns its path.

    Args:
        gallery: images in each of the six groups; 0 leaves the galleries out.

    Raises:
        JobError: no finished score table or manifest, or a subset without its rule. A record or image that
            cannot be read is shown as a placeholder with the reason.
    """
    manifest = read_manifest(scores_dir)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    rule = _read_rule(Path(subset))
    with open_scores(scores_dir, spill_dir=output.parent) as db:
        db.read_parquet(str(subset)).create_view("kept_pairs")
        db.execute(
            """CREATE TABLE pairs AS SELECT scores.id, row, text_index, scores.score, status, error, text_chars,
            coalesce(source, '') AS source, kept_pairs.id IS NOT NULL AS kept
            FROM scores LEFT JOIN kept_pairs USING (row, text_index)"""
        )
        facts = {
            "rule": rule,
            "rule_text": _rule_text(rule),
            "name": Path(data_spec(manifest).path).name,
            "origin": _flat({key: manifest.get(key) for key in ("model", "template", "position_scheme", *manifest)}),
            "made": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
            "command": _command(scores_dir, Path(subset).parent, rule),
            "sample_points": POINTS,
            "length_correlation": _length_correlation(db),
            "sources": _sources(db, rule["cut"]),
            "errors": _errors(db),
            "groups": _galleries(db, data_spec(manifest), gallery) if gallery else [],
            "charts": {
                "histogram": score_histogram(db, rule["cut"]),
                "length": score_by_length(db, rule["cut"]),
            },
        }
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            **facts,
            vega=vl_convert.javascript_bundle(),  # type: ignore[call-arg]
        )
    )
    partial = output.with_name(f".{output.name}.partial")
    partial.write_text(page, encoding="utf-8", errors="replace")
    return partial.replace(output)


def _read_rule(subset: Path) -> dict[str, Any]:
    try:
        return json.loads(pq.read_schema(subset).metadata[b"rule"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise JobError(f"{subset} is not a subset written by select_subset: {error}") from error


def _rule_text(rule: dict[str, Any]) -> str:
    if rule["threshold"] is not None:
        return f"every pair with a score of at least {rule['threshold']:g}"
    return f"the best {100 * rule['fraction']:.4g} % of the scored pairs, equal scores in the order of their ids"


def _command(scores_dir: str | Path, output_dir: Path, rule: dict[str, Any]) -> str:
    words = ["python", "python_script/select_subset.py", f"scores_dir={scores_dir}", f"output_dir={output_dir}"]
    words += [f"{name}={'null' if rule[name] is None else rule[name]}" for name in ("fraction", "threshold")]
    return shlex.join(words)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted key."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, inner in tree.items() for k, v in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}


def _length_correlation(db: duckdb.DuckDBPyConnection) -> float | None:
    """Pearson correlation of score and text length; None where one of them does not vary."""
    (value,) = one_row(db, "SELECT corr(score, text_chars) FROM pairs WHERE status = 'ok'")
    return value if value is not None and math.isfinite(value) else None


def _sources(db: duckdb.DuckDBPyConnection, cut: float) -> dict[str, Any]:
    """The ``SOURCES`` largest sources by falling kept share, and every source that the rule wiped out.

    Score quantiles (5, 25, 50, 75, 95 %) are positions in 0..100 on one axis common to all sources.
    """
    rows = db.execute(
        """SELECT source AS name, count(*) AS pairs, count(*) FILTER (status = 'ok'),
        count(*) FILTER (kept), approx_quantile(score, [0.05, 0.25, 0.5, 0.75, 0.95]) FILTER (status = 'ok')
        FROM pairs GROUP BY 1 ORDER BY pairs DESC, name LIMIT ?""",
        [SOURCES],
    ).fetchall()
    spreads = [spread for *_, spread in rows if spread]
    low, high = min([cut, *(s[0] for s in spreads)]), max([cut, *(s[-1] for s in spreads)])
    shown = [
        {
            "name": name,
            "pairs": pairs,
            "ok": ok,
            "kept": kept,
            "share": kept / ok if ok else 0.0,
            "box": [100 * (q - low) / ((high - low) or 1) for q in spread or []],
            "median": spread[2] if spread else None,
        }
        for name, pairs, ok, kept, spread in rows
    ]
    db.execute(
        """CREATE VIEW wiped AS SELECT source FROM pairs WHERE source <> '' AND status = 'ok'
        GROUP BY source HAVING NOT bool_or(kept)"""
    )
    (total,) = one_row(db, "SELECT count(DISTINCT source) FROM pairs WHERE source <> ''")
    (wiped,) = one_row(db, "SELECT count(*) FROM wiped")
    names = db.execute("SELECT source FROM wiped ORDER BY source LIMIT ?", [SOURCES]).fetchall()
    return {
        "total": total,
        "shown": sorted(shown, key=lambda entry: (-entry["share"], -entry["pairs"], entry["name"])),
        "low": low,
        "high": high,
        "wiped": wiped,
        "wiped_names": [name for (name,) in names],
    }


def _errors(db: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    rows = db.execute(
        """SELECT status, count(*), arg_min({'id': id, 'error': coalesce(error, '')}, id, 3)
        FROM pairs WHERE status <> 'ok' GROUP BY status ORDER BY 2 DESC, 1"""
    ).fetchall()
    return [{"kind": kind, "pairs": pairs, "examples": examples} for kind, pairs, examples in rows]


def _galleries(db: duckdb.DuckDBPyConnection, spec: DataSpec, size: int) -> list[dict[str, Any]]:
    """The groups of cards, at most one card of a record in a group so that five captions show five images."""
    picked = []
    for state, heading, order in GROUPS:
        where = "kept" if state == "kept" else "NOT kept AND status = 'ok'"
        columns = "row, text_index, id, score, source"
        query = f"SELECT {columns} FROM pairs WHERE {where} ORDER BY {order} LIMIT ?"  # noqa: S608, all of it is ours
        rows = db.execute(query, [8 * size]).fetchall()
        first_of_row: dict[int, Any] = {}
        for found in rows:
            first_of_row.setdefault(found[0], found)
        picked.append((state, heading, list(first_of_row.values())[:size]))
    records = _read_rows(spec, {row[0] for _, _, rows in picked for row in rows})
    root = resolve_root(spec) if records else None
    thumbnails: dict[int, dict[str, str]] = {}
    groups = []
    for state, heading, rows in picked:
        cards = []
        for number, text_index, name, score, source in rows:
            record = records.get(number)
            if number not in thumbnails:
                thumbnails[number] = _thumbnail(record, root)
            text = _text(record, text_index) if record else ""
            cards.append(
                {
                    "id": name,
                    "score": score,
                    "source": source,
                    "text": _shorten(text, CAPTION_CHARS),
                    "title": _shorten(text, TITLE_CHARS),
                    **thumbnails[number],
                }
            )
        groups.append({"state": state, "heading": heading, "cards": cards})
    return groups


def _read_rows(spec: DataSpec, rows: set[int]) -> dict[int, Record]:
    """Those records of ``rows`` that can be read, by row number; none when the data has been moved away."""
    without_ids = replace(spec, id_column=None)  # records are found by row: no need to compare all ids again
    found: dict[int, Record] = {}
    with suppress(JobError):
        for record in pick_records(without_ids, rows):
            found[record.row] = record
    return found


def _thumbnail(record: Record | None, root: Path | None) -> dict[str, str]:
    """``image``: a JPEG as data URI, or ``missing``: the reason why there is none."""
    try:
        if record is None:
            raise RecordError("missing_record", "the record can no longer be read")
        if record.error:
            raise record.error
        if not record.images:
            raise RecordError("missing_image", "the record has no image")
        image = open_image(record.images[0], root)
    except RecordError as error:
        return {"missing": f"{error.kind}: {_shorten(str(error), CAPTION_CHARS)}"}
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80, optimize=True)
    return {"image": "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()}


def _text(record: Record, text_index: int) -> str:
    if text_index < len(record.texts):
        return record.texts[text_index]
    return " · ".join(turn["content"].replace("<image>", "").strip() for turn in record.turns)


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit].rstrip()} … ({len(text):,} characters)"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["share"] = lambda part: "< 0.1 %" if 0 < part < 0.0005 else f"{100 * part:.1f} %"
    environment.filters["short"] = lambda text: _shorten(text, CAPTION_CHARS)
    environment.filters["score"] = lambda score: f"{score:.3f}" if abs(score) < 100 else f"{score:.4g}"
    return environment
