"""Score every image-text pair of a data set with a score model, into a table that select_subset.py cuts.

    python python_script/score_dataset.py config/score_dataset.yaml data.path=captions.csv output_dir=output/mine
    python python_script/score_dataset.py data.path=a.parquet data.text_column=captions model.path=PumpkinCat/ScoreRS

    python python_script/score_dataset.py "data.path=shards/{000..012}.tar" output_dir=output/shards

Reads CSV, TSV, JSON, JSONL, Parquet, WebDataset tars, folders and patterns of them, and folders that the datasets
library saved: caption tables and ShareGPT or LLaVA conversations. Run again, it goes on where it stopped. A record that
cannot be scored is in the table with its error; everything else is scored.
"""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

from src.config import run_program
from src.curation.job import run_job
from src.curation.scorer import Scorer
from src.dataset.images import ImageLimits
from src.dataset.records import DataSpec, resolve_root

DEFAULT_CONFIG = Path(__file__).parents[1] / "config" / "score_dataset.yaml"


@dataclass
class DataConfig:
    path: str = "output/scenes/scenes.csv"
    image_root: str | None = None
    image_column: str = "filename"
    text_column: str = "title"
    id_column: str | None = None
    source_column: str | None = None
    question_column: str | None = None


@dataclass
class ModelConfig:
    path: str = "assets/nano/scorer"
    device: str = "auto"
    dtype: str = "auto"
    template: str = "answer"
    position_scheme: str = "auto"
    max_tokens: int = 8192
    max_pixels: int | None = None
    token_budget: int = 8192
    workers: int | None = None


@dataclass
class LimitsConfig:
    max_pixels: int = 100_000_000
    max_bytes: int = 536_870_912
    min_side: int = 2
    max_aspect_ratio: float = 200.0


@dataclass
class ScoreConfig:
    """Keys of config/score_dataset.yaml, where each is explained."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    output_dir: str = "output/score_dataset"
    shard_size: int = 2048


def main(config: ScoreConfig) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    spec = DataSpec(**asdict(config.data))
    resolve_root(spec)  # refuses a wrong data set before a large model is loaded
    scorer = Scorer.from_pretrained(**asdict(config.model), limits=ImageLimits(**asdict(config.limits)))
    summary = run_job(spec, scorer, config.model.path, config.output_dir, config.shard_size)
    print(summary)
    if summary.ok:
        print(f"score  min {summary.score_min:.3f}  median {summary.score_median:.3f}  max {summary.score_max:.3f}")
    print(f"table  {Path(config.output_dir, 'scores')}")


if __name__ == "__main__":
    run_program(main, ScoreConfig, DEFAULT_CONFIG)
