"""Does curation pay? Train one CLIP on what several rules keep of data with known faults, and measure it.

    CAPTIONED=train.parquet TEST=test.parquet bash script/curation_experiment.sh
    python python_script/curation_experiment.py [CONFIG] data.captioned=train.parquet data.test=test.parquet ...

The shell script trains first what judges the pairs, on one half of the captioned images; this program damages captions
of the other half, cuts it by every rule, trains and measures. It goes on where it stopped. Writes ``results_dir``:
``results.json`` (every training), ``table.md`` and ``chart.png``.
"""

from pathlib import Path

from src.config import run_program
from src.experiment.clip_curation import ClipCuration, ClipCurationConfig
from src.experiment.curation import conduct

ROOT = Path(__file__).resolve().parents[1]


def main(config: ClipCurationConfig) -> None:
    conduct(ClipCuration(config))


if __name__ == "__main__":
    run_program(main, ClipCurationConfig, ROOT / "config" / "nano" / "curation_experiment.yaml")
