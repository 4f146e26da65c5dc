"""Keep the best part of a scored data set: its ids, its data in the input's own format, and a report.

    python python_script/select_subset.py scores_dir=output/rsicd fraction=0.3
    python python_script/select_subset.py scores_dir=output/rsicd fraction=null threshold=0.5 output_dir=output/good
    python python_script/select_subset.py scores_dir=output/rsicd group_by=source
    python python_script/select_subset.py scores_dir=output/rsicd fraction=null group_by=row per_group=1
    python python_script/select_subset.py scores_dir=output/rsicd unique=phash_group language=en

Reads what score_dataset.py wrote, and what measure_pairs.py wrote beside it. Equal values at the cut are kept in the
order of their ids. A source that the rule wipes out, or cuts to under a tenth of the common share, is named in a
warning.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from src.config import run_program
from src.curation.report import write_report
from src.curation.rules import Rule
from src.curation.select import select_subset, write_kept

DEFAULT_CONFIG = Path(__file__).parents[1] / "config" / "select_subset.yaml"


@dataclass
class ReportConfig:
    enabled: bool = True
    gallery: int = 12


@dataclass
class SelectConfig:
    """Keys of config/select_subset.yaml, where each is explained."""

    scores_dir: str = "output/score_dataset"
    output_dir: str = "${scores_dir}"
    fraction: float | None = 0.3
    threshold: float | None = None
    by: str = "score"
    scores_from: str | None = None
    group_by: str | None = None
    per_group: int | None = None
    temperature: float | None = None
    seed: int = 0
    min_width: int | None = None
    max_width: int | None = None
    min_height: int | None = None
    max_height: int | None = None
    min_chars: int | None = None
    max_chars: int | None = None
    language: Any = None
    unique: str | None = None
    nan: str = "refuse"
    all: list[dict[str, Any]] | None = None
    any: list[dict[str, Any]] | None = None
    report: ReportConfig = field(default_factory=ReportConfig)


def main(config: SelectConfig) -> None:
    measures = Path(config.scores_dir, "measures.parquet")
    rule = Rule.from_keys(
        {key.name: getattr(config, key.name) for key in fields(Rule)}, str(measures) if measures.is_file() else None
    )
    selection = select_subset(config.scores_dir, config.output_dir, rule)
    print(selection)
    for line in selection.losses.lines():
        print(line)
    print(f"ids    {selection.path}")
    print(f"data   {write_kept(config.scores_dir, selection.path, config.output_dir)}")
    if config.report.enabled:
        target = Path(config.output_dir, "report.html")
        print(f"report {write_report(config.scores_dir, selection.path, target, config.report.gallery)}")


if __name__ == "__main__":
    run_program(main, SelectConfig, DEFAULT_CONFIG)
