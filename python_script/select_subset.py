"""Keep the best part of a scored data set: its ids, its data in the input's own format, and a report.

    python python_script/select_subset.py scores_dir=output/rsicd fraction=0.3
    python python_script/select_subset.py scores_dir=output/rsicd fraction=null threshold=0.5 output_dir=output/good

Reads what score_dataset.py wrote. Equal scores at the cut are kept in the order of their ids.
"""

from dataclasses import dataclass, field
from pathlib import Path

from src.config import run_program
from src.curation.report import write_report
from src.curation.select import Rule, select_subset, write_kept

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
    report: ReportConfig = field(default_factory=ReportConfig)


def main(config: SelectConfig) -> None:
    rule = Rule(config.fraction, config.threshold)
    selection = select_subset(config.scores_dir, config.output_dir, rule)
    print(selection)
    print(f"ids    {selection.path}")
    print(f"data   {write_kept(config.scores_dir, selection.path, config.output_dir)}")
    if config.report.enabled:
        target = Path(config.output_dir, "report.html")
        print(f"report {write_report(config.scores_dir, selection.path, target, config.report.gallery)}")


if __name__ == "__main__":
    run_program(main, SelectConfig, DEFAULT_CONFIG)
