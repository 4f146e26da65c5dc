"""What the pages of evaluation share: accuracies with their intervals, and how a chart becomes a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from src.errors import JobError

_FORMATS = {".html": "html", ".png": "png", ".svg": "svg"}


def points_of(results: Mapping[str, Mapping[str, Any]], table: str) -> list[dict[str, Any]]:
    """The entries of ``by_kind`` or ``by_source`` of several results, each with its ``name`` and ``by`` whom it is."""
    keys = ("accuracy", "low", "high", "pairs", "auc")
    return [
        {"name": name, "by": who, **{key: entry[key] for key in keys}}
        for who, result in results.items()
        for name, entry in result[table].items()
    ]


def interval_dots(
    points: Sequence[Mapping[str, Any]],
    order: Sequence[str],
    colours: Mapping[str, str],
    chance: float | None = 0.5,
    title: str = "accuracy",
    legend: bool = True,
    apart: bool = False,
) -> Any:
    """Chart of accuracy, 0 to 1, by name: a dot with its 95 % interval for each of ``by``, and a line at chance.

    Args:
        points: as of :func:`points_of`; further keys are shown where the mouse is.
        order: names from top to bottom.
        colours: of each of ``by``, in the order of the legend.
        chance: where the line is; None: there is none.
        title: of the axis.
        legend: whether the colours are explained.
        apart: whether each of ``by`` has a line of its own within that of a name.
    """
    further = [key for key in (points[0] if points else ()) if key not in ("name", "by", "accuracy", "low", "high")]
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    base = alt.Chart(alt.Data(values=points)).encode(
        y=alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelLimit=260, ticks=False, labelPadding=8)),
        color=alt.Color("by:N", title=None, scale=scale, legend=alt.Legend() if legend else None),
        tooltip=[
            "name:N",
            "by:N",
            *(alt.Tooltip(f"{key}:Q", format=".1%") for key in ("accuracy", "low", "high")),
            *(alt.Tooltip(f"{key}:Q", format=".3f" if key == "auc" else ",") for key in further),
        ],
    )
    if apart:
        base = base.encode(yOffset=alt.YOffset("by:N", sort=list(colours)))
    top = max([1.0, *(point["high"] for point in points)])  # CIDEr goes beyond 1
    across = alt.X("accuracy:Q", title=title, axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, top]))
    dots = base.mark_circle(size=90, opacity=0.9).encode(x=across)
    bars = base.mark_rule(strokeWidth=2, opacity=0.5).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    if chance is None:
        return alt.layer(bars, dots)
    line = alt.Chart(alt.Data(values=[{"x": chance}])).mark_rule(strokeDash=[4, 4], color="#888").encode(x="x:Q")
    return alt.layer(line, bars, dots)


def save_page(chart: Any, target: Path) -> None:
    """Write a chart as ``.html`` (self-contained), ``.png`` or ``.svg``, in the style of all pages.

    Raises:
        JobError: another suffix.
    """
    if target.suffix not in _FORMATS:
        raise JobError(f"{target.name}: use one of {', '.join(_FORMATS)}")
    page = chart.configure(font="system-ui, sans-serif", background="white").configure_view(strokeWidth=0)
    page = page.configure_axis(domain=False).configure_title(anchor="start", fontSize=14)
    target.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"inline": True, "embed_options": {"actions": False}} if target.suffix == ".html" else {}
    page.save(target, format=_FORMATS[target.suffix], **(options or {"scale_factor": 1.6}))
