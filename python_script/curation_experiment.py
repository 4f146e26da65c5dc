"""Does curation pay? Train one CLIP on what several rules keep of data with known faults, and measure it.

    CAPTIONED=train.parquet TEST=test.parquet bash script/curation_experiment.sh
    python python_script/curation_experiment.py [CONFIG] data.captioned=train.parquet data.test=test.parquet ...

The shell script trains first what judges the pairs, on one half of the captioned images; this program damages captions
of the other half, cuts it by every rule, trains and measures. It goes on where it stopped. Writes ``results_dir``:
``results.json`` (every training), ``table.md`` and ``chart.png``.
"""

import itertools
import json
from pathlib import Path

from omegaconf import OmegaConf

from src.config import run_program
from src.evaluation.charts import save_page
from src.experiment.clip_curation import ExperimentConfig, prepare, run
from src.experiment.summary import NAMES, chart, markdown, paired, summarise

ROOT = Path(__file__).resolve().parents[1]
TITLES = {"top1": "zero-shot top-1", "mean_recall": "retrieval, mean recall"}


def main(config: ExperimentConfig) -> None:
    if config.prepare_only:
        prepare(config)
        print(f"data   {config.output_dir}")
        return
    entries = run(config)
    out = Path(config.results_dir)
    out.mkdir(parents=True, exist_ok=True)
    settings = OmegaConf.to_container(OmegaConf.structured(config))
    (out / "results.json").write_text(json.dumps({"settings": settings, "trainings": entries}, indent=1) + "\n")
    table = markdown(summarise(entries, list(TITLES)), TITLES)
    (out / "table.md").write_text(table, encoding="utf-8")
    save_page(chart(entries, TITLES), out / "chart.png")
    print(table)
    for share, other in itertools.product(config.shares, config.arms if "score" in config.arms else ()):
        if other not in ("score", "oracle"):
            gains = {title: paired(entries, name, share, "score", other) for name, title in TITLES.items()}
            said = ", ".join(f"{title} {100 * gain:+.1f} ± {100 * half:.1f}" for title, (gain, half) in gains.items())
            print(f"{share:.0%} damaged, score above {NAMES[other]}: {said}")
    print(f"results {out}")


if __name__ == "__main__":
    run_program(main, ExperimentConfig, ROOT / "config" / "nano" / "curation_experiment.yaml")
