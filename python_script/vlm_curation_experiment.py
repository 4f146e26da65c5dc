"""Does curation pay for fine-tuning? Train one Qwen2-VL on what several rules keep of answers with known faults.

    bash script/vlm_curation_experiment.sh
    python python_script/vlm_curation_experiment.py [CONFIG] [key=value ...]

Questions are about made scenes. The shell script trains first the score model that judges the answers, on scenes of its
own; this program damages answers about other scenes, cuts them by every rule, fine-tunes and measures on held-out
scenes. It goes on where it stopped. Writes ``results_dir``: ``results.json`` (every training), ``table.md`` and
``chart.png``.
"""

from pathlib import Path

from src.config import run_program
from src.experiment.curation import conduct
from src.experiment.vlm_curation import VlmCuration, VlmCurationConfig

ROOT = Path(__file__).resolve().parents[1]


def main(config: VlmCurationConfig) -> None:
    conduct(VlmCuration(config))


if __name__ == "__main__":
    run_program(main, VlmCurationConfig, ROOT / "config" / "nano" / "vlm_curation_experiment.yaml")
