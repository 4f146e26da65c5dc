"""Pictures of the training of a score model: loss and accuracy by stage, and what each reached by kind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from src.evaluation.charts import interval_dots, points_of, save_page

TRAINING, HELD_OUT = "training", "held out"
_COLOURS = alt.Scale(domain=[TRAINING, HELD_OUT], range=["#0072B2", "#D55E00"])
# From light to dark, so that a later stage stands out.
_STAGES = ["#C6DBEF", "#A6CEE3", "#4A90C2", "#08306B"]


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
        measured: by name what ``reward_accuracy.py`` found of each, in order; of more than four the last four.
    """
    measured = dict(list(measured.items())[-len(_STAGES) :])
    last = measured[list(measured)[-1]]["by_kind"]
    order = sorted(last, key=lambda kind: -last[kind]["accuracy"])
    colours = dict(zip(measured, _STAGES[-len(measured) :], strict=True))
    chart = interval_dots(points_of(measured, "by_kind"), order, colours)
    return chart.properties(title="Held-out accuracy by kind of wrong answer", width=520, height=alt.Step(24))


def write_curves(charts: Sequence[Any], target: Path) -> None:
    """Write charts below one another, as :func:`src.evaluation.charts.save_page` does."""
    save_page(alt.vconcat(*charts, spacing=28).resolve_scale(color="independent"), target)
