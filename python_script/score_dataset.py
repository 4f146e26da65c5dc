"""Score every image-text pair of a data set with a score model, into a table that select_subset.py cuts.

    python python_script/score_dataset.py config/score_dataset.yaml data.path=captions.csv output_dir=output/mine
    python python_script/score_dataset.py data.path=a.parquet data.text_column=captions model.path=PumpkinCat/ScoreRS

    python python_script/score_dataset.py "data.path=shards/{000..012}.tar" output_dir=output/shards

Reads CSV, TSV, JSON, JSONL, Parquet, WebDataset tars, folders and patterns of them, and folders that the datasets
library saved: caption tables and ShareGPT or LLaVA conversations. Run again, it goes on where it stopped. A record that
cannot be scored is in the table with its error; everything else is scored.

On one machine every GPU gets a process with the model. On several, engine=accelerate divides the work among the
processes of a launch, and engine=ray among the workers of a cluster; all give the same table:

    accelerate launch --config_file config/accelerate/ddp.yaml python_script/score_dataset.py engine=accelerate ...
    python python_script/score_dataset.py engine=ray processes=8 ...
"""

import logging
import os
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

from src.config import run_program
from src.curation.engines import ENGINES, score_by_processes, score_on_ray
from src.curation.job import Job, Summary
from src.curation.scorer import Scorer, ScorerConfig
from src.dataset.images import ImageLimits
from src.dataset.records import DataSpec, resolve_root
from src.errors import JobError

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
class LimitsConfig:
    max_pixels: int = 100_000_000
    max_bytes: int = 536_870_912
    min_side: int = 2
    max_aspect_ratio: float = 200.0


@dataclass
class ScoreConfig:
    """Keys of config/score_dataset.yaml, where each is explained."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ScorerConfig = field(default_factory=ScorerConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    output_dir: str = "output/score_dataset"
    shard_size: int = 2048
    engine: str = "local"
    processes: int | None = None


def main(config: ScoreConfig) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if config.engine not in ENGINES:
        raise JobError(f"engine is {config.engine!r}; use one of {', '.join(ENGINES)}")
    spec = DataSpec(**asdict(config.data))
    resolve_root(spec)  # refuses a wrong data set before a large model is loaded
    if config.engine == "local":
        _launch_if_several(config)
    job = Job.of(spec, config.model.path, config.output_dir, config.shard_size)
    load = partial(_load, config)
    summary: Summary | None
    if config.engine == "ray":
        summary = score_on_ray(job, load, config.processes)
    elif config.engine == "accelerate":
        summary = score_by_processes(job, load)
    else:
        summary = job.run(partial(load, "auto"))
    if summary is None:  # another process speaks
        return
    print(summary)
    if summary.ok:
        print(f"score  min {summary.score_min:.3f}  median {summary.score_median:.3f}  max {summary.score_max:.3f}")
    print(f"table  {Path(config.output_dir, 'scores')}")


def _load(config: ScoreConfig, device: str) -> Scorer:
    """The scorer on ``device``, unless the configuration names one."""
    options = asdict(config.model)
    if options["device"] == "auto":
        options["device"] = device
    return Scorer.from_pretrained(**options, limits=ImageLimits(**asdict(config.limits)))


def _launch_if_several(config: ScoreConfig) -> None:
    """Become a launch of several processes on this machine, if it has several GPUs or several are asked for."""
    visible = torch.cuda.device_count() if config.model.device == "auto" else 1
    processes = visible or 1 if config.processes is None else config.processes
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        os.execv(sys.executable, [*launcher, *sys.argv, "engine=accelerate"])  # noqa: S606  # arguments, no shell


if __name__ == "__main__":
    run_program(main, ScoreConfig, DEFAULT_CONFIG)
