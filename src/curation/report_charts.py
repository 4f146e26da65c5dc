"""The charts of the report as Vega-Lite specifications (Altair) over data that SQL has already summed up.

Colours are left to the page: marks name a style (``cut``, ``trend``, ``spread``) and the colour scale has the
fixed order kept, dropped, so that the page can draw the same chart on light and on dark paper.
"""

from typing import Any

import altair as alt
import duckdb

BINS = 60
POINTS = 4000
LENGTH_BINS = 16


def score_histogram(db: duckdb.DuckDBPyConnection, cut: float | None) -> dict[str, Any]:
    """Stacked histogram of all scores, kept and dropped, with the cut, if any, as a line. Reads ``pairs``."""
    rows = db.execute(
        """WITH edge AS (SELECT min(score) AS low, greatest(max(score) - min(score), 1e-9) / ? AS step
                         FROM pairs WHERE status = 'ok'),
        binned AS (SELECT low, step, kept, least(floor((score - low) / step), ? - 1) AS bin
                   FROM pairs, edge WHERE status = 'ok')
        SELECT low + step * bin, low + step * (bin + 1), kept, count(*)
        FROM binned GROUP BY low, step, bin, kept ORDER BY bin, kept""",
        [BINS, BINS],
    ).fetchall()
    bars = [
        {"from": low, "to": high, "state": "kept" if kept else "dropped", "pairs": n, "order": int(kept)}
        for low, high, kept, n in rows
    ]
    histogram = (
        alt.Chart(alt.Data(values=bars))
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("from:Q", bin="binned", title="score", axis=alt.Axis(format="~r", grid=False, tickCount=8)),
            x2="to:Q",
            y=alt.Y("pairs:Q", title="pairs", axis=alt.Axis(format="~s", tickCount=5)),
            color=_state_colour(),
            order="order:Q",
            tooltip=[
                alt.Tooltip("state:N"),
                alt.Tooltip("from:Q", format=".4g"),
                alt.Tooltip("to:Q", format=".4g"),
                alt.Tooltip("pairs:Q", format=","),
            ],
        )
    )
    if cut is None:
        return _finish(alt.layer(histogram), height=260)
    mark = alt.Chart(alt.Data(values=[{"cut": cut, "label": f"cut {cut:.3g}"}])).encode(x="cut:Q")
    line = mark.mark_rule(style="cut")
    label = mark.mark_text(style="cut-label", align="left", baseline="top", dx=6).encode(y=alt.value(0), text="label:N")
    return _finish(alt.layer(histogram, line, label), height=260)


def score_by_length(db: duckdb.DuckDBPyConnection, cut: float | None) -> dict[str, Any]:
    """Score against the characters of the text, see ``_scatter``."""
    return _scatter(db, cut, "text_chars", "characters", "characters of text")


def score_by_size(db: duckdb.DuckDBPyConnection, cut: float | None) -> dict[str, Any]:
    """Score against the megapixels of the image, see ``_scatter``."""
    return _scatter(db, cut, "megapixels", "megapixels", "megapixels of image")


def _scatter(db: duckdb.DuckDBPyConnection, cut: float | None, column: str, name: str, title: str) -> dict[str, Any]:
    """A fixed sample of at most ``POINTS`` pairs, score against a column, over the median and middle half."""
    # The order of hashed ids is a random sample that is the same for any order of rows, in bounded memory
    points = db.execute(
        f"""SELECT {column} AS {name}, score, CASE WHEN kept THEN 'kept' ELSE 'dropped' END AS state, id
        FROM pairs WHERE status = 'ok' AND {column} > 0 ORDER BY hash(id), id LIMIT ?""",  # noqa: S608, ours
        [POINTS],
    )
    names = [found[0] for found in points.description or []]
    sample = [dict(zip(names, row, strict=True)) for row in points.fetchall()]
    sizes = sorted(point[name] for point in sample)
    stretched = bool(sizes) and sizes[-1] > 20 * sizes[len(sizes) // 2]
    scale = alt.Scale(type="log" if stretched else "linear", zero=False, nice=False, padding=12)

    x = alt.X(f"{name}:Q", title=title, scale=scale, axis=alt.Axis(format="~s", grid=False, tickCount=8))
    y = alt.Y("score:Q", title="score", scale=alt.Scale(zero=False, padding=8), axis=alt.Axis(tickCount=6))
    dots = (
        alt.Chart(alt.Data(values=sample))
        .mark_circle(size=16, opacity=0.45)
        .encode(x=x, y=y, color=_state_colour(), tooltip=["id:N", "state:N", "score:Q", f"{name}:Q"])
    )
    trend = alt.Chart(alt.Data(values=_trend(sample, name)))
    spread = trend.mark_area(style="spread").encode(x=f"{name}:Q", y="q1:Q", y2="q3:Q")
    median = trend.mark_line(style="trend").encode(x=f"{name}:Q", y="median:Q")
    line = alt.Chart(alt.Data(values=[{"cut": cut}])).mark_rule(style="cut").encode(y="cut:Q")
    return _finish(alt.layer(dots, spread, *([line] if cut is not None else []), median), height=320)


def _trend(sample: list[dict[str, Any]], name: str) -> list[dict[str, float]]:
    """Median and quartiles of the score in bins of equal numbers of sampled pairs, by rising ``name``."""
    ranked = sorted(sample, key=lambda point: (point[name], point["id"]))
    bins = min(LENGTH_BINS, len(ranked) // 8)
    trend = []
    for k in range(bins):
        part = ranked[k * len(ranked) // bins : (k + 1) * len(ranked) // bins]
        scores = sorted(point["score"] for point in part)
        low, middle, high = (scores[int(share * (len(scores) - 1))] for share in (0.25, 0.5, 0.75))
        trend.append({name: part[len(part) // 2][name], "q1": low, "median": middle, "q3": high})
    return trend


def _state_colour() -> alt.Color:
    return alt.Color("state:N", scale=alt.Scale(domain=["kept", "dropped"]), legend=None)


def _finish(chart: Any, height: int) -> dict[str, Any]:
    spec = chart.properties(width="container", height=height).to_dict()
    del spec["$schema"], spec["config"]  # an address, and colours that the page knows better
    return spec
