"""The two charts of the report as Vega-Lite specifications (Altair) over data that SQL has already summed up.

Colours are left to the page: marks name a style (``cut``, ``trend``, ``spread``) and the colour scale has the
fixed order kept, dropped, so that the page can draw the same chart on light and on dark paper.
"""

from typing import Any

import altair as alt
import duckdb

BINS = 60
POINTS = 4000
LENGTH_BINS = 16


def score_histogram(db: duckdb.DuckDBPyConnection, cut: float) -> dict[str, Any]:
    """Stacked histogram of all scores, kept and dropped, with the cut as a line. Reads the view ``pairs``."""
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
    mark = alt.Chart(alt.Data(values=[{"cut": cut, "label": f"cut {cut:.3g}"}])).encode(x="cut:Q")
    line = mark.mark_rule(style="cut")
    label = mark.mark_text(style="cut-label", align="left", baseline="top", dx=6).encode(y=alt.value(0), text="label:N")
    return _finish(alt.layer(histogram, line, label), height=260)


def score_by_length(db: duckdb.DuckDBPyConnection, cut: float) -> dict[str, Any]:
    """A fixed sample of at most ``POINTS`` pairs, score against text length, over the median and middle half."""
    # The order of hashed ids is a random sample that is the same for any order of rows, in bounded memory
    points = db.execute(
        """SELECT text_chars AS characters, score, CASE WHEN kept THEN 'kept' ELSE 'dropped' END AS state, id
        FROM pairs WHERE status = 'ok' AND text_chars > 0 ORDER BY hash(id), id LIMIT ?""",
        [POINTS],
    )
    names = [column[0] for column in points.description or []]
    sample = [dict(zip(names, row, strict=True)) for row in points.fetchall()]
    lengths = sorted(point["characters"] for point in sample)
    stretched = bool(lengths) and lengths[-1] > 20 * lengths[len(lengths) // 2]
    scale = alt.Scale(type="log" if stretched else "linear", zero=False, nice=False, padding=12)

    x = alt.X(
        "characters:Q", title="characters of text", scale=scale, axis=alt.Axis(format="~s", grid=False, tickCount=8)
    )
    y = alt.Y("score:Q", title="score", scale=alt.Scale(zero=False, padding=8), axis=alt.Axis(tickCount=6))
    dots = (
        alt.Chart(alt.Data(values=sample))
        .mark_circle(size=16, opacity=0.45)
        .encode(x=x, y=y, color=_state_colour(), tooltip=["id:N", "state:N", "score:Q", "characters:Q"])
    )
    trend = alt.Chart(alt.Data(values=_length_trend(sample)))
    spread = trend.mark_area(style="spread").encode(x="characters:Q", y="q1:Q", y2="q3:Q")
    median = trend.mark_line(style="trend").encode(x="characters:Q", y="median:Q")
    line = alt.Chart(alt.Data(values=[{"cut": cut}])).mark_rule(style="cut").encode(y="cut:Q")
    return _finish(alt.layer(dots, spread, line, median), height=320)


def _length_trend(sample: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Median and quartiles of the score in bins of equal numbers of sampled pairs, by rising length."""
    ranked = sorted(sample, key=lambda point: (point["characters"], point["id"]))
    bins = min(LENGTH_BINS, len(ranked) // 8)
    trend = []
    for k in range(bins):
        part = ranked[k * len(ranked) // bins : (k + 1) * len(ranked) // bins]
        scores = sorted(point["score"] for point in part)
        low, middle, high = (scores[int(share * (len(scores) - 1))] for share in (0.25, 0.5, 0.75))
        trend.append({"characters": part[len(part) // 2]["characters"], "q1": low, "median": middle, "q3": high})
    return trend


def _state_colour() -> alt.Color:
    return alt.Color("state:N", scale=alt.Scale(domain=["kept", "dropped"]), legend=None)


def _finish(chart: Any, height: int) -> dict[str, Any]:
    spec = chart.properties(width="container", height=height).to_dict()
    del spec["$schema"], spec["config"]  # an address, and colours that the page knows better
    return spec
