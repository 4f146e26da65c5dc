"""What trainings of an experiment reached, by share of faults and arm: a table, and a chart with all of them in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
from scipy import stats

NAMES = {
    "everything": "everything",
    "random": "random",
    "length": "longest text",
    "clip_score": "highest CLIP score",
    "score": "highest score",
    "oracle": "clean ones only",
}
_COLOURS = {"score": "#1f6feb", "oracle": "#2da44e"}
_OTHER = "#6e7781"

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One arm at one share of faults, over its seeds.

    Attributes:
        pairs: how many it trained on, the mean.
        clean: the share of clean ones among them, 0..1, the mean.
        means, halves: of each metric the mean, and half the width of its 95 % interval by Student's t; 0 of one seed.
    """

    share: float
    arm: str
    seeds: int
    pairs: float
    clean: float
    means: dict[str, float]
    halves: dict[str, float]


def summarise(entries: Sequence[Entry], metrics: Sequence[str]) -> list[Line]:
    """One line per share and arm, in the order in which they come."""
    groups: dict[tuple[float, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry["share"], entry["arm"]), []).append(entry)
    lines = []
    for (share, arm), some in groups.items():
        values = {name: np.array([entry[name] for entry in some]) for name in metrics}
        lines.append(
            Line(
                share,
                arm,
                len(some),
                float(np.mean([entry["pairs"] for entry in some])),
                float(np.mean([entry["clean"] for entry in some])),
                {name: float(found.mean()) for name, found in values.items()},
                {name: _half_width(found) for name, found in values.items()},
            )
        )
    return lines


def paired(entries: Sequence[Entry], metric: str, share: float, arm: str, other: str) -> tuple[float, float]:
    """Mean gain of an arm over another, seed by seed, and half the width of its 95 % interval."""
    values = {(entry["arm"], entry["seed"]): entry[metric] for entry in entries if entry["share"] == share}
    seeds = sorted(seed for name, seed in values if name == arm and (other, seed) in values)
    gains = np.array([values[arm, seed] - values[other, seed] for seed in seeds])
    return float(gains.mean()), _half_width(gains)


def markdown(lines: Sequence[Line], titles: Mapping[str, str]) -> str:
    """A table in Markdown, the best of each share and metric but the oracle's in bold."""
    rows = [f"| faults | trained on | pairs | clean | {' | '.join(titles.values())} |"]
    rows.append("|---|---|" + "---:|" * (2 + len(titles)))
    for line in lines:
        rivals = [one for one in lines if one.share == line.share and one.arm != "oracle"]
        cells = []
        for name in titles:
            text = f"{100 * line.means[name]:.1f} ± {100 * line.halves[name]:.1f}"
            best = line.arm != "oracle" and line.means[name] == max(one.means[name] for one in rivals)
            cells.append(f"**{text}**" if best else text)
        head = f"{line.share:.0%} | {NAMES.get(line.arm, line.arm)} | {line.pairs:,.0f} | {100 * line.clean:.1f} %"
        rows.append(f"| {head} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def chart(entries: Sequence[Entry], titles: Mapping[str, str]) -> Any:
    """Rows of arms, a column per metric and a block per share: the mean with its 95 % interval, and each seed."""
    lines = summarise(entries, list(titles))
    order = [NAMES.get(arm, arm) for arm in dict.fromkeys(line.arm for line in lines)]
    blocks = []
    for share in dict.fromkeys(line.share for line in lines):
        columns = [
            _panel(
                [e for e in entries if e["share"] == share], [one for one in lines if one.share == share], n, t, order
            )
            for n, t in titles.items()
        ]
        blocks.append(alt.hconcat(*columns).properties(title=f"{share:.0%} of the captions damaged"))
    return alt.vconcat(*blocks)


def _panel(entries: Sequence[Entry], lines: Sequence[Line], metric: str, title: str, order: Sequence[str]) -> Any:
    points = [
        {
            "arm": NAMES.get(line.arm, line.arm),
            "value": line.means[metric],
            "low": line.means[metric] - line.halves[metric],
            "high": line.means[metric] + line.halves[metric],
            "clean": line.clean,
            "colour": _COLOURS.get(line.arm, _OTHER),
        }
        for line in lines
    ]
    seeds = [
        {"arm": NAMES.get(e["arm"], e["arm"]), "value": e[metric], "colour": _COLOURS.get(e["arm"], _OTHER)}
        for e in entries
    ]
    y = alt.Y("arm:N", sort=list(order), title=None, axis=alt.Axis(labelLimit=200, ticks=False, labelPadding=8))
    x = alt.X("value:Q", title=title, axis=alt.Axis(format="%", tickCount=5), scale=alt.Scale(zero=False))
    colour = alt.Color("colour:N", scale=None)
    tip: list[Any] = ["arm:N", *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("value", "low", "high", "clean"))]
    base = alt.Chart(alt.Data(values=points)).encode(y=y, color=colour, tooltip=tip)
    bars = base.mark_rule(strokeWidth=2, opacity=0.5).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    dots = base.mark_circle(size=110, opacity=0.95).encode(x=x)
    each = alt.Chart(alt.Data(values=seeds)).mark_tick(thickness=2, size=12, opacity=0.6).encode(y=y, x=x, color=colour)
    return alt.layer(bars, each, dots).properties(width=300, height=170)


def _half_width(values: np.ndarray) -> float:
    if len(values) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
