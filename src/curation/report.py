"""The report of a selection: one HTML file that opens anywhere, asks the network for nothing, and shows the data.

What grows with the table (histogram, sources, errors) is summed up by DuckDB; what is shown one by one (gallery,
points) is cut to a fixed number before it reaches Python.
"""

import json
import math
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from src.curation.gallery import Group, galleries
from src.curation.page import write_page
from src.curation.report_charts import POINTS, score_by_length, score_by_size, score_histogram
from src.curation.rules import Rule
from src.curation.score_table import data_spec, one_row, open_scores, read_manifest
from src.curation.select import read_facts, rule_of
from src.curation.sources import kept_by_source

DROPPED = "NOT kept AND status = 'ok'"
# from the best to the worst, as they stand on the page
EDGES = (
    Group("kept", "Highest scores", "kept", "score DESC, id"),
    Group("kept", "A random handful of what was kept", "kept", "hash(id), id"),
    Group("kept", "Just above the cut", "kept", "score, id"),
    Group("dropped", "Just below the cut", DROPPED, "score DESC, id"),
    Group("dropped", "A random handful of what was dropped", DROPPED, "hash(id), id"),
    Group("dropped", "Lowest scores", DROPPED, "score, id"),
)
# a rule that does not cut through the score has no edge in it
RENAMED = {"Just above the cut": "Lowest scores kept", "Just below the cut": "Highest scores dropped"}
FILTER_WORDS = {"width": "images {} pixels wide", "height": "images {} pixels high", "chars": "texts of {} characters"}


def write_report(scores_dir: str | Path, subset: str | Path, output: str | Path, gallery: int = 12) -> Path:
    """Writes the report on ``subset`` (a ``subset_ids.parquet``) to the HTML file ``output`` and returns its path.

    Args:
        gallery: images in each of the six groups; 0 leaves the galleries out.

    Raises:
        JobError: no finished score table or manifest, or a subset without its rule. A record or image that
            cannot be read is shown as a placeholder with the reason.
    """
    manifest = read_manifest(scores_dir)
    spec = data_spec(manifest)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    facts = read_facts(subset)
    rule = rule_of(facts)
    cut = facts["cut"] if rule.is_plain else None
    groups = [
        Group(g.state, g.heading if rule.is_plain else RENAMED.get(g.heading, g.heading), g.where, g.order)
        for g in EDGES
    ]
    with open_scores(scores_dir, spill_dir=output.parent) as db:
        db.read_parquet(str(subset)).create_view("kept_pairs")
        db.execute(
            """CREATE TABLE pairs AS SELECT scores.id, row, text_index, scores.score, status, error, text_chars,
            width::DOUBLE * height / 1e6 AS megapixels, coalesce(source, '') AS source,
            kept_pairs.id IS NOT NULL AS kept FROM scores LEFT JOIN kept_pairs USING (row, text_index)"""
        )
        correlations = {name: _correlation(db, name) for name in ("text_chars", "megapixels")}
        content = {
            "rule": facts,
            "rule_text": rule_text(rule),
            "plain": rule.is_plain,
            "name": Path(spec.path).name,
            "origin": _flat({key: manifest.get(key) for key in ("model", "template", "position_scheme", *manifest)}),
            "made": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
            "command": _command(scores_dir, Path(subset).parent, rule),
            "sample_points": POINTS,
            "correlations": correlations,
            "sources": kept_by_source(db, facts["cut"]),
            "errors": _errors(db),
            "groups": galleries(db, spec, groups, gallery) if gallery else [],
            # a chart of what does not vary would be a line of dots
            "charts": {
                "histogram": score_histogram(db, cut),
                **({} if correlations["text_chars"] is None else {"length": score_by_length(db, cut)}),
                **({} if correlations["megapixels"] is None else {"size": score_by_size(db, cut)}),
            },
        }
    return write_page("report.html.j2", output, content, with_charts=True)


def rule_text(rule: Rule) -> str:
    """The rule as part of a sentence."""
    if rule.all or rule.any:
        joined = "what every one of these rules keeps" if rule.all else "what at least one of these rules keeps"
        texts = [
            f"[{rule_text(part)}]" if part.all or part.any else rule_text(part) for part in rule.all or rule.any or ()
        ]
        return f"{joined}: {'; '.join(f'({number}) {text}' for number, text in enumerate(texts, 1))}"
    what = {"score": "score", "random": "random number", "text_chars": "text length"}.get(rule.by, rule.by)
    group = {"source": "each source", "row": "each record"}.get(rule.group_by or "", f"each {rule.group_by}")
    filters = [
        FILTER_WORDS[key[4:]].format(f"at {'least' if key.startswith('min') else 'most'} {bound:,}")
        for key, bound in rule.given().items()
        if key[4:] in FILTER_WORDS
    ]
    if rule.language is not None:
        codes = [rule.language] if isinstance(rule.language, str) else rule.language
        filters.append(f"language {' or '.join(codes)}")
    pairs = f"pairs with {' and '.join(filters)}" if filters else "scored pairs"
    if rule.unique is not None:
        pairs += f" of the best record of each {rule.unique}"
    if rule.threshold is not None:
        text = f"every pair with a {what} of at least {rule.threshold:g}"
        return f"{text} among the {pairs}" if filters or rule.unique else text
    if rule.fraction is None and rule.per_group is None:
        return f"the {pairs}"
    many = f"{100 * rule.fraction:.4g} %" if rule.fraction is not None else f"{rule.per_group:,}"
    share = many if rule.fraction is not None else f"at most {many}"
    whole = f"of the {pairs}" + (f" of {group}" if rule.group_by else "")
    if rule.temperature is not None:
        return f"a draw of {share} {whole}, weighted by {what} at temperature {rule.temperature:g}, seed {rule.seed}"
    if rule.by == "random":
        return f"a random {share} {whole}, seed {rule.seed}"
    best = f"the best {share}" if rule.fraction is not None else f"{share}, the best,"
    by = "" if rule.by == "score" else f" by {what}"
    return f"{best} {whole}{by}, equal {'scores' if rule.by == 'score' else 'values'} in the order of their ids"


def _command(scores_dir: str | Path, output_dir: Path, rule: Rule) -> str:
    words = ["python", "python_script/select_subset.py", f"scores_dir={scores_dir}", f"output_dir={output_dir}"]
    keys = {"fraction": rule.fraction, "threshold": rule.threshold, **rule.given()}
    words += [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in keys.items()]
    return shlex.join(words)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted key."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, inner in tree.items() for k, v in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}


def _correlation(db: duckdb.DuckDBPyConnection, column: str) -> float | None:
    """Pearson correlation of score and a column of ``pairs``; None where one of them does not vary."""
    (value,) = one_row(db, f"SELECT corr(score, {column}) FROM pairs WHERE status = 'ok'")  # noqa: S608, ours
    return value if value is not None and math.isfinite(value) else None


def _errors(db: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    rows = db.execute(
        """SELECT status, count(*), arg_min({'id': id, 'error': coalesce(error, '')}, id, 3)
        FROM pairs WHERE status <> 'ok' GROUP BY status ORDER BY 2 DESC, 1"""
    ).fetchall()
    return [{"kind": kind, "pairs": pairs, "examples": examples} for kind, pairs, examples in rows]
