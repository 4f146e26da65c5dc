"""Results side by side: models down, sets across, and an average only where every member of it is there."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

import altair as alt

from src.curation.page import write_page
from src.errors import JobError
from src.evaluation.charts import interval_dots, save_page
from src.evaluation.results import Metric, Result, metric_text

DASH = "—"
MAIN = (
    "top1",
    "mean_per_class_recall",
    "mean_recall",
    "accuracy",
    "precision",
    "cider",
)  # shown unless others are asked for
# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]


@dataclass(frozen=True)
class Table:
    """One metric of one task.

    Attributes:
        models: rows, the best average first, those without one last.
        sets: columns.
        cells: by (model, set); None where there is no result, or the metric is not defined.
    """

    task: str
    metric: str
    models: tuple[str, ...]
    sets: tuple[str, ...]
    cells: dict[tuple[str, str], Metric | None]

    def value(self, model: str, name: str) -> float | None:
        """0..1, or None."""
        metric = self.cells[model, name]
        return None if metric is None else metric["value"]

    def missing(self, model: str) -> list[str]:
        """The sets on which a model has no value."""
        return [name for name in self.sets if self.value(model, name) is None]

    def average(self, model: str) -> float | None:
        """Mean over all sets, or None if one is missing: averages over different sets cannot be compared."""
        values = [value for name in self.sets if (value := self.value(model, name)) is not None]
        return sum(values) / len(values) if len(values) == len(self.sets) else None

    @property
    def unit(self) -> str | None:
        """Of figures that are no shares; of those the least is best."""
        return next((metric["unit"] for metric in self.cells.values() if metric and "unit" in metric), None)

    def best(self, name: str | None = None) -> float | None:
        """The best value on a set, or the best average."""
        values = [self.value(model, name) if name else self.average(model) for model in self.models]
        return (min if self.unit else max)((value for value in values if value is not None), default=None)


def tables_of(results: Sequence[Result], metrics: Sequence[str] = (), sets: Sequence[str] = ()) -> list[Table]:
    """A table per task and metric, in the order in which the results name them.

    Args:
        metrics: which; none: the main ones of each task; ``all``: all.
        sets: which make up the columns; none: all that there are for the task.

    Raises:
        JobError: a metric or a set that no result has.
    """
    known = {name for result in results for name in result.metrics}
    if wrong := [name for name in metrics if name not in known | {"all"}]:
        raise JobError(f"no result has the metric {wrong[0]!r}; there are {', '.join(sorted(known))}")
    if wrong := [name for name in sets if name not in {result.set for result in results}]:
        raise JobError(f"no result is on the set {wrong[0]!r}")
    wanted = known if "all" in metrics else set(metrics or MAIN)
    found = {(result.task, result.model, result.set): result.metrics for result in results}
    tables = []
    for task in dict.fromkeys(result.task for result in results):
        mine = [result for result in results if result.task == task and (not sets or result.set in sets)]
        columns = tuple(sorted({result.set for result in mine}, key=str.casefold))
        models = tuple(sorted({result.model for result in mine}))
        for metric in dict.fromkeys(name for result in mine for name in result.metrics if name in wanted):
            cells = {(model, name): found.get((task, model, name), {}).get(metric)
                     for model in models for name in columns}  # fmt: skip
            tables.append(_ranked(Table(task, metric, models, columns, cells)))
    if not tables:
        raise JobError(f"no result has one of the metrics {', '.join(sorted(wanted))}; ask for others, or for all")
    return tables


def markdown(tables: Sequence[Table]) -> str:
    """The tables as Markdown: per cent, the best of a column bold, and under each what an average lacks."""
    parts = []
    for table in tables:
        several = len(table.sets) > 1
        head = ["model", *table.sets, *(["average"] if several else [])]
        lines = [
            f"### {table.task}: {table.metric} ({table.unit or '%'})",
            "",
            _line(head),
            _line(["---", *["---:"] * (len(head) - 1)]),
        ]
        for model in table.models:
            cells = [_bold(table.value(model, name), table.best(name), table.unit) for name in table.sets]
            average = [_bold(table.average(model), table.best(), table.unit)] if several else []
            lines.append(_line([model.replace("|", "\\|"), *cells, *average]))
        notes = [f"{model} lacks {', '.join(table.missing(model))}" for model in table.models if table.missing(model)]
        parts.append("\n".join([*lines, *(["", f"{DASH} no value: {'; '.join(notes)}."] if notes else [])]))
    return "\n\n".join(parts) + "\n"


def write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write ``results.md``, ``.csv``, ``.html`` and ``.png``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"results.{form}" for form in ("md", "csv", "html", "png")]
    paths[0].write_text(markdown(tables), encoding="utf-8")
    write_csv(tables, paths[1])
    write_table_page(tables, paths[2])
    write_table_chart(tables, paths[3])
    return paths


def write_csv(tables: Sequence[Table], target: Path) -> None:
    """A row per task, metric, model and set, and one for the average, empty where ``missing`` names sets."""
    with target.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("task", "metric", "model", "set", "value", "low", "high", "n", "missing"))
        for table in tables:
            for model in table.models:
                for name in table.sets:
                    metric = table.cells[model, name] or {}
                    given = [metric.get(key) for key in ("value", "low", "high", "n")]
                    rows.writerow((table.task, table.metric, model, name, *given, ""))
                rest = (table.average(model), None, None, None, " ".join(table.missing(model)))
                rows.writerow((table.task, table.metric, model, "average", *rest))


def chart(table: Table) -> Any:
    """A dot with its 95 % interval per set and model."""
    names = short_names(table.models)
    colours = {names[model]: _COLOURS[i % len(_COLOURS)] for i, model in enumerate(table.models)}
    points = [
        {"name": name, "by": names[model], "accuracy": metric["value"], "n": metric["n"],
         "low": _or(metric["low"], metric["value"]), "high": _or(metric["high"], metric["value"])}
        for (model, name), metric in table.cells.items()
        if metric is not None and metric["value"] is not None
    ]  # fmt: skip
    title = table.metric.replace("_", " ")
    dots = interval_dots(points, table.sets, colours, chance=None, title=title, apart=len(names) > 1)
    return dots.properties(width=560, height=alt.Step(12 if len(names) > 1 else 26))


def write_table_page(tables: Sequence[Table], target: Path) -> None:
    """Write one self-contained HTML page of the tables and their charts."""
    facts = {
        "tables": [
            (table, None if table.unit else chart(table).properties(width="container").to_dict()) for table in tables
        ],
        "names": short_names([model for table in tables for model in table.models]),
        "text": metric_text,
        "made": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
    }
    write_page("result_table.html.j2", target, facts, with_charts=True, folder=Path(__file__).parent)


def write_table_chart(tables: Sequence[Table], target: Path) -> None:
    """Write the charts below one another, as :func:`src.evaluation.charts.save_page` does; of shares, if there are."""
    shares = [table for table in tables if not table.unit] or tables
    titled = [chart(table).properties(title=f"{table.task}: {table.metric}") for table in shares]
    save_page(alt.vconcat(*titled, spacing=28).resolve_scale(color="independent"), target)


def short_names(models: Sequence[str]) -> dict[str, str]:
    """By model as many of the last parts of its path as tell it from all others."""
    parts = {model: PurePath(model).parts for model in models}
    names = {}
    for model, own in parts.items():
        others = [other for other in parts.values() if other != own]
        k = next((k for k in range(1, len(own)) if all(other[-k:] != own[-k:] for other in others)), len(own))
        names[model] = "/".join(own[-k:]) if k < len(own) else model
    return names


def _ranked(table: Table) -> Table:
    averages = {model: table.average(model) for model in table.models}
    sign, last = (1, float("inf")) if table.unit else (-1, -1.0)
    order = sorted(table.models, key=lambda model: sign * _or(averages[model], last))
    return Table(table.task, table.metric, tuple(order), table.sets, table.cells)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _bold(value: float | None, best: float | None, unit: str | None) -> str:
    if value is None:
        return DASH
    text = f"{value:.2f}" if unit else f"{100 * value:.1f}"
    return f"**{text}**" if value == best else text
