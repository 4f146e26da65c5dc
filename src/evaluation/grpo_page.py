"""Pictures of reinforcement learning: rewards by step, and held-out accuracy before and after it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

ALL = "all rewards"
_COLOURS = {
    ALL: "#222222", "format": "#999999", "em": "#0072B2", "iou": "#D55E00", "open_ended": "#009E73", "math": "#CC79A7",
}  # fmt: skip
_BEFORE, _AFTER = "before", "after"


def rewarded(history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a log history is one of ``train_grpo.py``."""
    return any("reward" in entry for entry in history)


def reward_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Chart of rewards by step: the mean of all, that of each kind of reward, and the share of well-formed responses.

    Args:
        runs: by name the log history of each (``history.json`` of ``train_grpo.py``). Of several, such as seeds, lines
            are means, and bands go from the lowest to the highest. A step has few prompts, and what they are worth
            differs more than training changes it: each run is told as its moving mean over a tenth of its log lines.
    """
    values: dict[tuple[str, int], list[float]] = defaultdict(list)
    width = 1
    for history in runs.values():
        told: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for entry in history:
            for name, value in entry.items():
                what = ALL if name == "reward" else name.removeprefix("reward_")
                if what in _COLOURS and value is not None and name in ("reward", what, f"reward_{what}"):
                    told[what].append((entry["step"], value))
        width = max(1, len(told[ALL]) // 10)
        for what, found in told.items():
            for (step, _), mean in zip(found, _moving_mean([value for _, value in found], width), strict=True):
                values[what, step].append(mean)
    points = [
        {"what": what, "step": step, "value": sum(found) / len(found), "low": min(found), "high": max(found)}
        for (what, step), found in values.items()
    ]
    shown = [what for what in _COLOURS if any(point["what"] == what for point in points)]
    scale = alt.Scale(domain=shown, range=[_COLOURS[what] for what in shown])
    title = "Mean reward by step" + (f", moving mean over {width} log lines" if width > 1 else "")
    title += f", {len(runs)} runs (band: lowest to highest)" if len(runs) > 1 else ""
    y = alt.Scale(domain=[0, 1])
    base = alt.Chart(alt.Data(values=points), title=title, width=520, height=260).encode(
        x=alt.X("step:Q", title="optimizer step"),
        color=alt.Color("what:N", title=None, scale=scale, legend=alt.Legend(symbolOpacity=1)),
        tooltip=["what:N", "step:Q", *(alt.Tooltip(f"{key}:Q", format=".3f") for key in ("value", "low", "high"))],
    )
    lines = base.mark_line(strokeWidth=2).encode(y=alt.Y("value:Q", title="mean reward", scale=y))
    if len(runs) == 1:
        return lines
    return base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title="mean reward", scale=y), y2="high:Q") + lines


def _moving_mean(values: Sequence[float], width: int) -> list[float]:
    """Means over ``width`` values around each, or as many of them as there are at the ends."""
    before, after = (width - 1) // 2, width // 2
    parts = [values[max(0, at - before) : at + after + 1] for at in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def held_out_change(runs: Mapping[str, Mapping[str, float]]) -> Any | None:
    """Chart of held-out answers before and after, a dot a run: how many are right, by kind of question, how many
    well-formed, and their mean reward; None without both.

    Args:
        runs: by name the ``metrics.json`` of each.
    """
    names = {f"{_BEFORE}_": _BEFORE, "eval_": _AFTER}
    points: list[dict[str, Any]] = [
        {"run": run, "when": when, "kind": rest.removeprefix("accuracy").removeprefix("_") or "all", "value": value}
        for run, metrics in runs.items()
        for name, value in metrics.items()
        for prefix, when in names.items()
        if (rest := name.removeprefix(prefix)) != name
        and (rest in ("format", "reward") or rest.startswith("accuracy"))
        and rest != "accuracy_caption"  # right in many words, a caption hardly ever equals its reference
    ]
    if {point["when"] for point in points} != {_BEFORE, _AFTER}:
        return None
    last = {point["kind"]: point["value"] for point in points if point["when"] == _AFTER}
    order = ["all", *sorted(last.keys() - {"all", "format", "reward"}, key=lambda kind: -last[kind])]
    order += ["format", "reward"]
    base = alt.Chart(alt.Data(values=points), title="Held-out answers before and after").encode(
        x=alt.X(
            "value:Q",
            title="right; well-formed; mean reward",
            axis=alt.Axis(format="%"),
            scale=alt.Scale(domain=[0, 1]),
        ),
        y=alt.Y("kind:N", sort=order, title=None, axis=alt.Axis(ticks=False, labelPadding=8)),
        tooltip=["run:N", "kind:N", "when:N", alt.Tooltip("value:Q", format=".1%")],
    )
    scale = alt.Scale(domain=[_BEFORE, _AFTER], range=["#A6A6A6", "#0072B2"])
    dots = base.mark_circle(size=80, opacity=0.8).encode(color=alt.Color("when:N", title=None, scale=scale))
    ways = base.mark_line(color="#BBBBBB", strokeWidth=2).encode(detail=["run:N", "kind:N"])
    return (ways + dots).properties(width=520, height=alt.Step(26))


def reinforcement(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], metrics: Mapping[str, Mapping[str, float]]
) -> list[Any]:
    """The charts of runs: :func:`reward_curves`, and :func:`held_out_change` where both sides were measured."""
    change = held_out_change(metrics)
    return [reward_curves(histories), *([change] if change else [])]
