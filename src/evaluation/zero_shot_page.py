"""The picture of a zero-shot evaluation: recall of every class with its interval, and the confusion matrix."""

from pathlib import Path
from typing import Any

import altair as alt

from src.evaluation.charts import interval_dots, save_page
from src.evaluation.results import Result, metric_text

_COLOUR = "#0072B2"
_SHADES = ["#f1f4f7", "#9ecae1", "#3182bd", "#08306b"]  # from none of a row to all of it
_NUMBERS_UP_TO = 25  # classes; beyond, a cell is too small for its number


def write_picture(result: Result, target: Path) -> None:
    """Write the chart of a zero-shot :class:`Result` as HTML, PNG or SVG, by the name of ``target``."""
    shown = [f"{name.replace('_', ' ')} {metric_text(metric)}" for name, metric in result.metrics.items()]
    counts = result.counts
    lines = [
        *shown,
        f"model {result.model}; {counts['records']:,} images, {counts['records'] - counts['ok']:,} unusable",
    ]
    title = alt.TitleParams(f"Zero-shot on {result.set}", subtitle=lines, anchor="start", fontSize=18, offset=16)
    classes = result.details["classes"]
    save_page(
        alt.hconcat(
            _matrix(classes, result.details["confusion"]), _recall(classes), title=title, spacing=40
        ).resolve_scale(color="independent"),
        target,
    )


def _matrix(classes: list[dict[str, Any]], confusion: list[list[int]]) -> Any:
    """Rows are true classes: each cell's colour is its share of the row, its number how many images it has."""
    names = _names(classes)
    cells = [
        {"true": names[i], "predicted": names[j], "images": count, "share": count / max(1, sum(row))}
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
    ]
    step = alt.Step(22 if len(names) <= _NUMBERS_UP_TO else 13)
    axis: dict[str, Any] = {"labelLimit": 220, "ticks": False, "labelPadding": 6, "labelOverlap": False}
    base = alt.Chart(alt.Data(values=cells)).encode(
        x=alt.X("predicted:N", sort=names, title="predicted", axis=alt.Axis(orient="top", labelAngle=-60, **axis)),
        y=alt.Y("true:N", sort=names, title="true", axis=alt.Axis(**axis)),
        tooltip=["true:N", "predicted:N", "images:Q", alt.Tooltip("share:Q", format=".1%")],
    )
    legend = alt.Legend(format="%", title="share of the true class", orient="bottom", gradientLength=260, tickCount=5)
    squares = base.mark_rect(stroke="white", strokeWidth=1).encode(
        color=alt.Color("share:Q", scale=alt.Scale(range=_SHADES, domain=[0, 1]), legend=legend)
    )
    if len(names) > _NUMBERS_UP_TO:
        return squares.properties(width=step, height=step)
    numbers = base.transform_filter("datum.images > 0").mark_text(fontSize=10)
    ink = alt.condition("datum.share > 0.5", alt.value("white"), alt.value("#222"))
    return alt.layer(squares, numbers.encode(text="images:Q", color=ink)).properties(width=step, height=step)


def _recall(classes: list[dict[str, Any]]) -> Any:
    rows = zip(_names(classes), classes, strict=True)
    points = [
        {"name": name, "by": "recall", "accuracy": c["recall"]["value"], "images": c["recall"]["n"],
         "low": c["recall"]["low"], "high": c["recall"]["high"]}
        for name, c in rows
        if c["recall"]["n"]
    ]  # fmt: skip
    order = [point["name"] for point in sorted(points, key=lambda point: -point["accuracy"])]
    dots = interval_dots(points, order, {"recall": _COLOUR}, chance=None, title="recall of the class", legend=False)
    return dots.properties(width=320, height=alt.Step(22 if len(classes) <= _NUMBERS_UP_TO else 13))


def _names(classes: list[dict[str, Any]]) -> list[str]:
    """What classes are called; by their folder too where two are called the same."""
    named = [entry["name"] for entry in classes]
    return [
        entry["name"] if named.count(entry["name"]) == 1 else f"{entry['name']} ({entry['folder']})"
        for entry in classes
    ]
