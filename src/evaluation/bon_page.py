"""The page of best-of-N: each selector by the number of candidates, and for boxes by the overlap that counts."""

from typing import Any

import altair as alt

from src.evaluation.results import Result

_COLOURS = (
    "#888888",
    "#b5b5b5",
    "#1f77b4",
    "#2ca02c",
    "#d62728",
    "#ff9896",
    "#9467bd",
    "#c5b0d5",
    "#8c564b",
    "#c49c94",
)


def chart(result: Result) -> Any:
    """Lines with bands of 95 %: accuracy against N on a scale of doublings, and beside it the IoU curve, if any."""
    names = list(result.metrics)
    what = "true boxes found, IoU ≥ 0.5" if "iou" in result.details else "right answers"
    charts = [_lines(result.details["curve"], names, "candidates", what, alt.Scale(type="log", base=2))]
    if "iou" in result.details:
        charts.append(
            _lines(result.details["iou"], names, "IoU of at least", "true boxes found", alt.Scale(zero=False))
        )
    title = f"{result.set}: best of N, {result.metrics['first']['n']:,} {'boxes' if len(charts) > 1 else 'questions'}"
    return alt.hconcat(*charts).properties(title=title)


def _lines(curves: dict[str, dict[str, Any]], names: list[str], across: str, up: str, scale: Any) -> Any:
    points = [
        {"by": name, "x": float(x), **{key: metric[key] for key in ("value", "low", "high")}}
        for name in names
        for x, metric in curves[name].items()
        if metric["value"] is not None
    ]
    ticks = sorted({point["x"] for point in points})
    colour = alt.Scale(domain=names, range=[_COLOURS[k % len(_COLOURS)] for k in range(len(names))])
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("x:Q", title=across, scale=scale, axis=alt.Axis(values=ticks, grid=False)),
        color=alt.Color("by:N", title=None, scale=colour, sort=names, legend=alt.Legend(symbolOpacity=1)),
        tooltip=["by:N", "x:Q", *(alt.Tooltip(f"{key}:Q", format=".1%") for key in ("value", "low", "high"))],
    )
    value = alt.Y("value:Q", title=up, axis=alt.Axis(format="%"), scale=alt.Scale(zero=False))
    band = base.mark_area(opacity=0.12).encode(y=alt.Y("low:Q", title=up), y2="high:Q")
    return (band + base.mark_line(point=True).encode(y=value)).properties(width=380, height=300)
