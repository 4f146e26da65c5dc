"""Pictures of reward training: how loss and accuracy went in every stage, and what each stage reached by kind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from src.errors import JobError

TRAINING, HELD_OUT = "training", "held out"
_COLOURS = alt.Scale(domain=[TRAINING, HELD_OUT], range=["#0072B2", "#D55E00"])
# From light to dark, so that a later stage stands out.
_STAGES = ["#A6CEE3", "#4A90C2", "#08306B", "#000000"]
_FORMATS = {".html": "html", ".png": "png", ".svg": "svg"}


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Chart of loss and of ranking accuracy by step, a column per run.

    Args:
        runs: by name the log history of each (``history.json`` of ``train_reward.py``, or Trainer's own).
    """
    points = [
        {"run": run, "what": what, "measure": measure, "step": entry["step"], "value": entry[key]}
        for run, history in runs.items()
        for entry in history
        for what, measure, key in (
            (TRAINING, "loss", "loss"),
            (HELD_OUT, "loss", "eval_loss"),
            (TRAINING, "accuracy", "ranking_accuracy"),
            (HELD_OUT, "accuracy", "eval_accuracy"),
        )
        if key in entry
    ]

    def panel(run: str, measure: str) -> Any:
        mine = alt.Data(values=[p for p in points if (p["run"], p["measure"]) == (run, measure)])
        axis = alt.Axis(format="%") if measure == "accuracy" else alt.Axis()
        return (
            alt.Chart(mine, title=run if measure == "loss" else "", width=230, height=130)
            .mark_line(point=alt.OverlayMarkDef(size=16))
            .encode(
                x=alt.X("step:Q", title="optimizer step" if measure == "accuracy" else None),
                y=alt.Y("value:Q", title=measure, scale=alt.Scale(zero=False), axis=axis),
                color=alt.Color("what:N", title=None, scale=_COLOURS),
                tooltip=["what:N", "step:Q", alt.Tooltip("value:Q", format=".4f")],
            )
        )

    rows = [alt.hconcat(*(panel(run, measure) for run in runs)) for measure in ("loss", "accuracy")]
    return alt.vconcat(*rows)


def kinds(measured: Mapping[str, Mapping[str, Any]]) -> Any:
    """Chart of accuracy with its interval by kind of wrong answer, a dot per run.

    Args:
        measured: by name what ``reward_accuracy.py`` found of each.
    """
    points = [
        {"run": run, "kind": kind, **{key: entry[key] for key in ("accuracy", "low", "high", "pairs")}}
        for run, result in measured.items()
        for kind, entry in result["by_kind"].items()
    ]
    last = list(measured)[-1]
    order = [p["kind"] for p in sorted(points, key=lambda p: -p["accuracy"]) if p["run"] == last]
    colour = alt.Scale(domain=list(measured), range=_STAGES[-len(measured) - 1 : -1])
    base = alt.Chart(alt.Data(values=points)).encode(
        y=alt.Y("kind:N", sort=order, title=None, axis=alt.Axis(labelLimit=260, ticks=False)),
        color=alt.Color("run:N", title=None, scale=colour),
        tooltip=["run:N", "kind:N", alt.Tooltip("accuracy:Q", format=".1%"), "pairs:Q"],
    )
    across = alt.Axis(format="%")
    dots = base.mark_circle(size=80, opacity=1).encode(x=alt.X("accuracy:Q", axis=across, title="held-out accuracy"))
    bars = base.mark_rule(strokeWidth=2, opacity=0.5).encode(x=alt.X("low:Q", title="held-out accuracy"), x2="high:Q")
    chance = alt.Chart(alt.Data(values=[{"x": 0.5}])).mark_rule(strokeDash=[4, 4], color="#888").encode(x="x:Q")
    return alt.layer(chance, bars, dots).properties(width=520, height=alt.Step(24), title="by kind of wrong answer")


def save(charts: Sequence[Any], target: Path) -> None:
    """Write charts below one another as ``.html`` (self-contained), ``.png`` or ``.svg``.

    Raises:
        JobError: another suffix.
    """
    if target.suffix not in _FORMATS:
        raise JobError(f"{target.name}: use one of {', '.join(_FORMATS)}")
    page = alt.vconcat(*charts, spacing=28).resolve_scale(color="independent")
    page = page.configure(font="system-ui, sans-serif", background="white").configure_view(strokeWidth=0)
    page = page.configure_title(anchor="start", fontSize=14)
    target.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"inline": True, "embed_options": {"actions": False}} if target.suffix == ".html" else {}
    page.save(target, format=_FORMATS[target.suffix], **(options or {"scale_factor": 1.6}))
