"""What trainings of an experiment reached, by share of faults and arm: a table, and a chart with all of them in it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from scipy import stats

from src.evaluation.charts import save_page

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
_COLUMNS = 3  # panels beside each other

BOLD = (
    "Bold: the highest mean of each share of faults, the clean ones left aside, and all that cannot be told from it:"
    " the 95 % interval of the difference, seed by seed, holds 0."
)
ONE_SEED = "One training each: no intervals, and so nothing in bold."

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One arm at one share of faults, over its seeds.

    Attributes:
        pairs: how many it trained on, the mean.
        clean: the share of clean ones among them, 0..1, the mean.
        means, halves: of each metric the mean, and half the width of its 95 % interval by Student's t; None of
            one seed.
    """

    share: float
    arm: str
    seeds: int
    pairs: float
    clean: float
    means: dict[str, float]
    halves: dict[str, float | None]


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


def paired(
    entries: Sequence[Entry], metric: str, share: float, arm: str, other: str
) -> tuple[float, float | None] | None:
    """Mean gain of an arm over another, seed by seed, and half the width of its 95 % interval (None of one seed).

    None where the two have no seed in common.
    """
    values = {(entry["arm"], entry["seed"]): entry[metric] for entry in entries if entry["share"] == share}
    seeds = sorted(seed for name, seed in values if name == arm and (other, seed) in values)
    gains = np.array([values[arm, seed] - values[other, seed] for seed in seeds])
    return (float(gains.mean()), _half_width(gains)) if seeds else None


def markdown(entries: Sequence[Entry], titles: Mapping[str, str]) -> str:
    """A table in Markdown, with what is best of each share and metric, as far as it can be told, in bold."""
    lines = summarise(entries, list(titles))
    rows = [f"| faults | trained on | pairs | clean | {' | '.join(titles.values())} |"]
    rows.append("|---|---|" + "---:|" * (2 + len(titles)))
    best = {
        (share, name): _best(entries, lines, share, name) for share in {line.share for line in lines} for name in titles
    }
    for line in lines:
        cells = []
        for name in titles:
            text = percent(line.means[name], line.halves[name])
            cells.append(f"**{text}**" if line.arm in best[line.share, name] else text)
        head = f"{line.share:.0%} | {NAMES.get(line.arm, line.arm)} | {line.pairs:,.0f} | {100 * line.clean:.1f} %"
        rows.append(f"| {head} | {' | '.join(cells)} |")
    several = any(best.values())
    return "\n".join([*rows, "", BOLD if several else ONE_SEED]) + "\n"


def _best(entries: Sequence[Entry], lines: Sequence[Line], share: float, metric: str) -> set[str]:
    """The arm of the highest mean and those that cannot be told from it; none where nothing can be told apart."""
    rivals = [line for line in lines if line.share == share and line.arm != "oracle"]
    if not rivals:
        return set()
    first = max(rivals, key=lambda line: line.means[metric])
    if first.halves[metric] is None:
        return set()
    found = {first.arm}
    for line in rivals:
        gain = paired(entries, metric, share, first.arm, line.arm)
        if gain is None or gain[1] is None or gain[0] <= gain[1]:
            found.add(line.arm)
    return found


def percent(mean: float, half: float | None, sign: str = "") -> str:
    """A share in per cent, or a gain in points, with half its interval where there is one."""
    text = f"{100 * mean:{sign}.1f}"
    return text if half is None else f"{text} ± {100 * half:.1f}"


def gains(entries: Sequence[Entry], titles: Mapping[str, str]) -> list[str]:
    """What the score wins over each other rule, share by share, in words."""
    found = []
    for share, other in dict.fromkeys((entry["share"], entry["arm"]) for entry in entries):
        each = {title: paired(entries, name, share, "score", other) for name, title in titles.items()}
        said = ", ".join(f"{title} {percent(*gain, '+')}" for title, gain in each.items() if gain)
        if said and other not in ("score", "oracle"):
            found.append(f"{share:.0%} damaged, score above {NAMES[other]}: {said}")
    return found


def write_results(
    entries: Sequence[Entry], titles: Mapping[str, str], noun: str, facts: Mapping[str, Any], folder: Path
) -> str:
    """Write ``results.json`` (``facts`` and all ``trainings``), ``table.md`` and ``chart.png``; return what they say.

    Args:
        titles: what each metric is called, by its key.
        noun: what was damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = json.dumps({**facts, "trainings": list(entries)}, indent=1, ensure_ascii=False)
    (folder / "results.json").write_text(told + "\n", encoding="utf-8")
    table = markdown(entries, titles)
    (folder / "table.md").write_text(table, encoding="utf-8")
    save_page(chart(entries, titles, noun), folder / "chart.png")
    return "\n".join([table, *gains(entries, titles), f"results {folder}"])


def chart(entries: Sequence[Entry], titles: Mapping[str, str], noun: str) -> Any:
    """Rows of arms, a panel per metric and a block per share: the mean with its 95 % interval, and each seed."""
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
        blocks.append(alt.concat(*columns, columns=_COLUMNS).properties(title=f"{share:.0%} of the {noun} damaged"))
    return alt.vconcat(*blocks)


def _panel(entries: Sequence[Entry], lines: Sequence[Line], metric: str, title: str, order: Sequence[str]) -> Any:
    points = [
        {
            "arm": NAMES.get(line.arm, line.arm),
            "value": line.means[metric],
            "low": line.means[metric] - (line.halves[metric] or 0.0),
            "high": line.means[metric] + (line.halves[metric] or 0.0),
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


def _half_width(values: np.ndarray) -> float | None:
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
