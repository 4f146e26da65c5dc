"""Measure the pairs of a scored data set beside their score: CLIP score, image entropy, language, near duplicates.

    python python_script/measure_pairs.py scores_dir=output/mine
    python python_script/measure_pairs.py scores_dir=output/mine "measures=[language, phash]" phash.distance=2
    python python_script/measure_pairs.py scores_dir=output/mine clip.path=RemoteCLIP-ViT-L-14.pt clip.batch_size=256

Reads what score_dataset.py wrote, and the data again. The file that it writes has a row for each pair, and
select_subset.py finds it by itself: by=clip_score, by=image_entropy, language=en, unique=phash_group. A run that was
killed goes on from its last whole part, of 2,048 records, when it is started again with the same settings; with others
it begins anew and says what has changed.
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from src.config import run_program
from src.curation.measure_job import measure_pairs
from src.curation.measures import LANGUAGES
from src.model.clip import load_clip

DEFAULT_CONFIG = Path(__file__).parents[1] / "config" / "measure_pairs.yaml"


@dataclass
class ClipConfig:
    path: str = "assets/nano/clip"
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 64


@dataclass
class LanguageConfig:
    among: list[str] = field(default_factory=lambda: list(LANGUAGES))


@dataclass
class HashConfig:
    distance: int = 6


@dataclass
class EmbeddingConfig:
    similarity: float = 0.95


@dataclass
class MeasureConfig:
    """Keys of config/measure_pairs.yaml, where each is explained."""

    scores_dir: str = "output/score_dataset"
    output: str = "${scores_dir}/measures.parquet"
    measures: list[str] = field(default_factory=lambda: ["clip_score", "image_entropy", "language", "phash"])
    workers: int | None = None
    clip: ClipConfig = field(default_factory=ClipConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    phash: HashConfig = field(default_factory=HashConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)


def main(config: MeasureConfig) -> None:
    summary = measure_pairs(
        config.scores_dir,
        config.output,
        config.measures,
        partial(load_clip, config.clip.path, config.clip.device, config.clip.dtype),
        distance=config.phash.distance,
        similarity=config.embedding.similarity,
        facts=asdict(config),
        languages=config.language.among,
        batch_size=config.clip.batch_size,
        workers=config.workers,
    )
    print(summary)
    print(f"measures {summary.path}")


if __name__ == "__main__":
    run_program(main, MeasureConfig, DEFAULT_CONFIG)
