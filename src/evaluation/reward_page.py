"""The page of an evaluation of a score model: accuracy by kind beside the controls, by source, and calibration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt

from src.evaluation.charts import interval_dots, points_of, save_page

MODEL = "score model"
# Okabe and Ito's colours, which colour-blind readers tell apart; the model in the strongest.
COLOURS = {
    MODEL: "#0072B2",
    "image_removed": "#D55E00",
    "images_shuffled": "#E69F00",
    "longer_wins": "#999999",
    "words_win": "#009E73",
}


def write_page(result: Mapping[str, Any], target: Path) -> None:
    """Write ``result`` of ``reward_accuracy.py`` as one self-contained HTML file."""
    overall = result["overall"]
    interval = f"{overall['low']:.1%} to {overall['high']:.1%}"
    title = alt.TitleParams(
        f"Right above wrong: {overall['accuracy']:.1%} of {overall['pairs']:,} pairs ({interval})",
        subtitle=[f"model {result['model']}", f"data {result['data']}"],
        anchor="start",
        fontSize=18,
        offset=16,
    )
    charts = alt.vconcat(
        _accuracy(result, "by_kind", "kind of wrong answer"),
        _accuracy(result, "by_source", "source"),
        _calibration(overall["calibration"]),
        title=title,
        spacing=36,
    )
    save_page(charts, target)


def _accuracy(result: Mapping[str, Any], table: str, name: str) -> Any:
    """Points with their intervals, a line of dots per kind or source: the model's, and those of the controls."""
    points = points_of({MODEL: result, **result["controls"]}, table)
    order = sorted(result[table], key=lambda key: -result[table][key]["accuracy"])
    present = {who: colour for who, colour in COLOURS.items() if who == MODEL or who in result["controls"]}
    chart = interval_dots(points, order, present)
    return chart.properties(title=f"Accuracy by {name}", width=620, height=alt.Step(26))


def _calibration(bins: list[dict[str, Any]]) -> Any:
    """How often the model is right, against how sure its margin says it is."""
    axis, scale = alt.Axis(format="%"), alt.Scale(domain=[0, 1])
    points = alt.Chart(alt.Data(values=bins)).encode(
        x=alt.X("predicted:Q", title="how sure: sigmoid of the margin", axis=axis, scale=alt.Scale(domain=[0.5, 1])),
        y=alt.Y("right:Q", title="how often right", axis=axis, scale=scale),
        tooltip=[alt.Tooltip("predicted:Q", format=".1%"), alt.Tooltip("right:Q", format=".1%"), "pairs:Q"],
    )
    ideal = alt.Chart(alt.Data(values=[{"x": 0.5}, {"x": 1}])).mark_line(strokeDash=[4, 4], color="#888")
    return alt.layer(
        ideal.encode(x="x:Q", y="x:Q"), points.mark_line(point=alt.OverlayMarkDef(size=70), color=COLOURS[MODEL])
    ).properties(title="Calibration of the margin", width=300, height=260)
