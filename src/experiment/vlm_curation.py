"""The curation experiment of fine-tuning: questions about made scenes, some of whose answers are wrong.

Scenes of three seeds: those that the score model learns right from wrong answers by, those that are cut, whose answers
are damaged, and held-out ones. One Qwen2-VL is fine-tuned on what each rule keeps; rules cut within each kind of
question, or they would change what is asked.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from src.curation.rules import Rule
from src.dataset.arrow_cache import IMAGE
from src.dataset.instructions import scene_conversations
from src.dataset.preference_build import write_groups
from src.dataset.records import DataSpec
from src.dataset.scenes import scene_seeds
from src.experiment.curation import Curation, CurationConfig, run_plan, write_table
from src.experiment.damage import damage_answers, wrong_answers
from src.training.vlm import PREDICTIONS
from src.training.vlm_config import VlmConfig
from src.training.vlm_run import train_vlm

LEARN, TEST = "learn.parquet", "test.parquet"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", IMAGE),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("about", pa.string()),
        ("kinds", pa.list_(pa.string())),
    ]
)
_COLUMNS = {"image_column": "image", "text_column": "answer", "question_column": "question"}


@dataclass
class Scenes:
    count: int = 1000
    seed: int = 31


@dataclass
class Data:
    questions: list[str] = field(default_factory=lambda: ["yes_no", "count", "colour", "relation", "scene"])
    size: int = 112
    pool: Scenes = field(default_factory=Scenes)
    learn: Scenes = field(default_factory=lambda: Scenes(seed=32))
    test: Scenes = field(default_factory=lambda: Scenes(seed=33))


@dataclass
class Judges:
    scorer: str = "${..output_dir}/scorer/final"


@dataclass
class VlmCurationConfig(CurationConfig):
    """Keys of config/nano/vlm_curation_experiment.yaml, where each is explained."""

    shares: list[float] = field(default_factory=lambda: [0.6])
    arms: list[str] = field(default_factory=lambda: ["everything", "random", "score", "oracle"])
    output_dir: str = "output/vlm_curation_experiment"
    data: Data = field(default_factory=Data)
    judges: Judges = field(default_factory=Judges)
    train: VlmConfig = field(default_factory=VlmConfig)


class VlmCuration(Curation):
    """The experiment on Qwen2-VL, judged by the answers to questions about scenes that it has not seen."""

    arms = ("everything", "random", "length", "score", "oracle")
    titles: ClassVar[Mapping[str, str]] = {
        "accuracy": "all questions",
        "accuracy_scene": "scene",
        "accuracy_relation": "relation",
        "accuracy_colour": "colour",
        "accuracy_count": "count",
        "accuracy_yes_no": "yes or no",
    }
    noun = "answers"
    script = "script/vlm_curation_experiment.sh"
    config: VlmCurationConfig

    def sources(self) -> dict[str, Any]:
        return asdict(self.config.data)

    def write_data(self, shares: Iterable[float]) -> list[str]:
        """Write pools, held-out questions, and of the judge's scenes right answers beside wrong ones as preferences."""
        data = self.config.data
        write_groups(_groups(list(self._rows(data.learn))), self.out / LEARN)
        write_table(pa.Table.from_pylist(list(self._rows(data.test)), _SCHEMA), self.out / TEST)
        rows = list(self._rows(data.pool))
        for share in shares:
            answers, kinds = damage_answers(*_asked(rows), share, seed=0)
            damaged = [{**r, "answer": a, "kinds": [k]} for r, a, k in zip(rows, answers, kinds, strict=True)]
            write_table(pa.Table.from_pylist(damaged, _SCHEMA), self.pool(share))
        return [LEARN, TEST, *(self.pool(share).name for share in shares)]

    def spec(self, pool: Path) -> DataSpec:
        return DataSpec(str(pool), id_column="id", source_column="about", **_COLUMNS)

    def rule(self, arm: str, seed: int, files: Mapping[str, str]) -> Rule:
        """As for any experiment, but within each kind of question."""
        rule = super().rule(arm, seed, files)
        return Rule(**{**rule.given(), "group_by": "source"})

    def train(self, subset: Path, folder: Path, seed: int) -> dict[str, Any]:
        columns = {"kind_column": "about", **_COLUMNS}
        plan = run_plan(self.config.train, seed, folder, subset=str(subset), eval_path=str(self.out / TEST), **columns)
        found = train_vlm(plan)
        lines = (folder / PREDICTIONS).read_text(encoding="utf-8").splitlines()
        asked = Counter(json.loads(line)["kind"] for line in lines)
        return {**{name: found[f"eval_{name}"] for name in self.titles}, "counts": {"held_out": dict(asked)}}

    def _rows(self, scenes: Scenes) -> Iterator[dict[str, Any]]:
        """A question of each kind about each scene, and its right answer."""
        data = self.config.data
        seeds = tqdm(scene_seeds(scenes.seed, scenes.count), f"scenes of seed {scenes.seed}", unit=" scenes")
        for one in scene_conversations(seeds, data.questions, len(data.questions), data.size):
            ((about, question, answer),) = one["turns"]
            image = {"bytes": one["image"], "path": one["name"]}
            yield {"id": one["id"], "image": image, "question": question, "answer": answer, "about": about, "kinds": []}


def _asked(rows: list[dict[str, Any]]) -> tuple[list[str], list[str], list[str]]:
    """Questions, answers and kinds of question."""
    return tuple([row[key] for row in rows] for key in ("question", "answer", "about"))  # type: ignore[return-value]


def _groups(rows: list[dict[str, Any]], most: int = 3) -> Iterator[dict[str, Any]]:
    """Preference groups: the right answer to a question above up to ``most`` wrong ones."""
    rng = np.random.default_rng(0)
    for row, wrong in zip(rows, wrong_answers(*_asked(rows)), strict=True):
        some = [wrong[int(i)] for i in rng.permutation(len(wrong))[:most]]
        told = {"image": row["image"], "question": row["question"], "source": row["about"]}
        yield {**told, "chosen": row["answer"], "rejected": some, "kinds": [row["about"]] * len(some)}
