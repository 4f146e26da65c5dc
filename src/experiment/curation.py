"""Does curation pay? One model, trained with equal compute on what several rules keep of data with known faults.

What every such experiment shares: a pool of pairs of which a share is damaged, a score model that has not seen them,
rules that each keep their part, one training on each part, and figures on held-out data. What the pairs are, what
trains and what measures is a subclass's.
"""

import json
import logging
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from src.curation.job import run_job
from src.curation.rules import Rule
from src.curation.score_table import differences, named
from src.curation.scorer import Scorer
from src.curation.select import select_subset
from src.dataset.records import DataSpec
from src.errors import JobError
from src.evaluation.reward_accuracy import auc
from src.experiment.damage import CLEAN
from src.experiment.summary import write_results
from src.training.run import RunConfig

MARKER = "data.json"  # written last, when all data are
ARMS = ("everything", "random", "length", "clip_score", "score", "oracle")
Run = TypeVar("Run", bound=RunConfig)

_log = logging.getLogger(__name__)


@dataclass
class CurationConfig:
    """Keys that every experiment has; a subclass adds ``data``, ``judges`` and ``train``."""

    shares: list[float] = field(default_factory=lambda: [0.3, 0.6])
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    arms: list[str] = field(default_factory=lambda: list(ARMS))
    keep: float = 0.3
    prepare_only: bool = False
    output_dir: str = "output/curation_experiment"
    results_dir: str = "${.output_dir}/results"


class Curation(ABC):
    """An experiment in its folder; every step that is done already is not done again.

    Attributes:
        arms: what may be trained on: everything, and what each rule keeps.
        titles: what each metric of a training is called, by its key.
        noun: what is damaged.
        script: what trains the judges first.

    Raises:
        JobError: an unknown arm, something given twice, or shares that leave the oracle too little.
    """

    arms: ClassVar[tuple[str, ...]]
    titles: ClassVar[Mapping[str, str]]
    noun: ClassVar[str]
    script: ClassVar[str]

    def __init__(self, config: Any):
        self.config = config
        self.out = Path(config.output_dir)
        for name in ("shares", "seeds", "arms"):
            _check_distinct(name, getattr(config, name))
        if unknown := [arm for arm in config.arms if arm not in self.arms]:
            raise JobError(f"arms: no {unknown[0]!r}; known: {', '.join(self.arms)}")
        if "oracle" in config.arms and max(config.shares) > 1 - config.keep:
            raise JobError(
                f"of shares={max(config.shares):g} too few clean {self.noun} are left for the oracle's"
                f" keep={config.keep:g}"
            )

    @abstractmethod
    def sources(self) -> dict[str, Any]:
        """What the data are made from, as JSON can hold it: other sources, other data."""

    @abstractmethod
    def write_data(self, shares: Iterable[float]) -> list[str]:
        """Write a pool for each share of faults, held-out data and what judges learn from; each is whole or not there.

        A pool has a row a record with its ``kinds``: of each pair ``clean`` or its kind of fault.

        Returns:
            the names of all files and folders that were written in ``out``.
        """

    @abstractmethod
    def spec(self, pool: Path) -> DataSpec:
        """What the columns of a pool mean."""

    @abstractmethod
    def train(self, subset: Path, folder: Path, seed: int) -> dict[str, Any]:
        """Train on a selection and measure: ``titles``' metrics, 0..1, and ``counts`` of what was measured on."""

    def values(self, scores: Path) -> dict[str, str]:  # noqa: ARG002
        """Files of values for arms that go by something else than the score table holds."""
        return {}

    def pool(self, share: float) -> Path:
        """The damaged pool of a share of faults."""
        return self.out / f"pool-{share:g}.parquet"

    def prepare(self) -> None:
        """Write the data, unless they are all there.

        Raises:
            JobError: the folder holds the data of other sources.
        """
        marker = self.out / MARKER
        made_from, shares = _plain(self.sources()), list(self.config.shares)
        if earlier := _read(marker):
            if changed := list(differences(earlier["made_from"], made_from)):
                raise JobError(f"{self.out} holds other data: {named(changed)}. Use a new output_dir")
            present = all(_extent(self.out / name) == extent for name, extent in earlier["files"].items())
            if present and {self.pool(share).name for share in shares} <= {*earlier["files"]}:
                return
            shares = sorted({*shares, *earlier["shares"]})
        self.out.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
        files = {name: _extent(self.out / name) for name in self.write_data(shares)}
        write_json({"made_from": made_from, "shares": shares, "files": files}, marker)

    def judge(self, share: float) -> Path:
        """Score a damaged pool; the folder of its score table."""
        for name, path in asdict(self.config.judges).items():
            if not Path(path).exists():
                raise JobError(f"judges.{name}: no such model: {path}; {self.script} trains it first")
        scores, scorer = self.out / f"scores-{share:g}", self.config.judges.scorer
        run_job(self.spec(self.pool(share)), Scorer.from_pretrained(scorer), scorer, scores)
        return scores

    def truth(self, share: float, scores: Path) -> Path:
        """Write what only the experiment knows, by pair: ``kind``, and ``oracle``, a random number for clean pairs.

        The damaged ones have -1 there, so that a cut by ``oracle`` keeps clean pairs at random.
        """
        kinds = pq.read_table(self.pool(share), columns=["kinds"])["kinds"].to_pylist()
        table = pq.read_table(scores / "scores", columns=["id", "row", "text_index"])
        places = zip(table["row"].to_pylist(), table["text_index"].to_pylist(), strict=True)
        kind = [kinds[row][index] for row, index in places]
        chance = np.random.default_rng(0).random(len(kind))
        oracle = np.where(np.array(kind) == CLEAN, chance, -1.0)
        target = self.out / f"truth-{share:g}.parquet"
        write_table(pa.table({"id": table["id"], "kind": kind, "oracle": oracle}), target)
        return target

    def rule(self, arm: str, seed: int, files: Mapping[str, str]) -> Rule:
        """What an arm keeps: its part by its value, or everything.

        Args:
            files: of the arms whose values are not in the score table.
        """
        by = {"length": "text_chars", "everything": "score"}.get(arm, arm)
        keep = 1.0 if arm == "everything" else self.config.keep
        drawn = seed if arm == "random" else 0  # the parts of the others are the same at every seed
        return Rule(fraction=keep, by=by, seed=drawn, scores_from=files.get(arm))

    def run(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Make every part, train on it and measure.

        Returns:
            an entry for each training; and for each share how well the score parts clean pairs from damaged ones.

        Raises:
            JobError: a judge or the start of training is not there, or as the steps.
        """
        self.prepare()
        entries, judged = [], []
        for share in self.config.shares:
            scores = self.judge(share)
            truth = self.truth(share, scores)
            files = {**self.values(scores), "oracle": str(truth)}
            judged.append({"share": share, **separation(scores, truth)})
            for seed in self.config.seeds:
                entries += [self._trained(share, arm, seed, scores, files) for arm in self.config.arms]
        return entries, judged

    def _trained(self, share: float, arm: str, seed: int, scores: Path, files: dict[str, str]) -> dict[str, Any]:
        """What one training reached, from its file where it has been."""
        folder = self.out / "runs" / f"{share:g}-{arm}-{seed}"
        target = folder.with_name(f"{folder.name}.json")
        given = {name: asdict(getattr(self.config, name)) for name in ("data", "judges", "train")}
        values = {name: Path(path).name for name, path in files.items() if name == arm}
        settings = _plain({"keep": self.config.keep, **given, "values": values})
        if earlier := _read(target, needed={"settings"}):
            if changed := list(differences(earlier.pop("settings"), settings)):
                raise JobError(f"{target} is of other settings: {named(changed)}. Use a new output_dir")
            return earlier
        subset = folder.with_name(f"{folder.name}-subset")
        select_subset(scores, subset, self.rule(arm, seed, files))
        facts = {"share": share, "arm": arm, "seed": seed, **_kinds(subset / "subset_ids.parquet", files["oracle"])}
        facts = _plain(facts | self.train(subset, folder, seed))
        write_json({**facts, "settings": settings}, target)
        shutil.rmtree(folder)  # some 30 MB a training that nothing reads again
        return facts


def conduct(experiment: Curation) -> None:
    """Run an experiment, or only its ``prepare``; write ``results_dir`` and say what came out."""
    config = experiment.config
    if config.prepare_only:
        experiment.prepare()
        print(f"data   {config.output_dir}")
        return
    entries, judged = experiment.run()
    facts = {"settings": OmegaConf.to_container(OmegaConf.structured(config)), "judge": judged}
    print(write_results(entries, experiment.titles, experiment.noun, facts, Path(config.results_dir)))


def run_plan(train: Run, seed: int, folder: Path, **data: str) -> Run:
    """The configuration of one training: the common one with its seed, its folder and its ``data``.

    Trainings share a cache: seeds that train on one part check it once.
    """
    given = {"seed": seed, "save_folder": str(folder), "save_overwrite": True,
             "data": {"cache_dir": str(folder.parent / "cache"), **data}}  # fmt: skip
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(train), given))  # type: ignore[return-value]


def separation(scores: Path, truth: Path) -> dict[str, Any]:
    """``auc``, the chance that a clean pair scores above a damaged one, over all pairs and by ``source``.

    A source without pairs of both sorts has none.
    """
    table = pq.read_table(scores / "scores", columns=["score", "source"])  # rows as in truth
    score = table["score"].to_numpy().astype(float)
    usable = np.isfinite(score)
    clean = np.array(pq.read_table(truth, columns=["kind"])["kind"].to_pylist()) == CLEAN
    source = np.array(table["source"].to_pylist())

    def found(among: np.ndarray) -> float | None:
        right, wrong = score[among & clean], score[among & ~clean]
        return auc(right, wrong) if len(right) and len(wrong) else None

    by_source = {str(name): found(usable & (source == name)) for name in sorted(set(source.tolist()))}
    return {"auc": found(usable), "auc_by_source": by_source}


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file that is there as a whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial, row_group_size=256)
    partial.replace(path)


def write_json(content: Any, path: Path) -> None:
    """Write a JSON file that is there as a whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _read(path: Path, needed: Iterable[str] = ("made_from", "shares", "files")) -> dict[str, Any] | None:
    """What an earlier run has written; None, with a warning, where it does not read."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or (missing := {*needed} - {*found}):
            raise ValueError(f"lacks {', '.join(sorted(missing)) if isinstance(found, dict) else 'an object'}")
    except (OSError, ValueError) as error:
        _log.warning("%s does not read, what it says is done anew: %s", path, error)
        return None
    return found


def _extent(path: Path) -> int:
    """Bytes of a file, or files in a folder; -1 where there is nothing."""
    if path.is_dir():
        return sum(one.is_file() for one in path.rglob("*"))
    return path.stat().st_size if path.exists() else -1


def _plain(content: Any) -> Any:
    """As JSON reads it back."""
    return json.loads(json.dumps(content))


def _kinds(subset: Path, truth: str) -> dict[str, Any]:
    """How many pairs a part has, and of which kinds."""
    kept = set(pq.read_table(subset, columns=["id"])["id"].to_pylist())
    table = pq.read_table(truth, columns=["id", "kind"])
    pairs = zip(table["id"].to_pylist(), table["kind"].to_pylist(), strict=True)
    kinds = Counter(kind for name, kind in pairs if name in kept)
    return {"pairs": len(kept), "kinds": dict(sorted(kinds.items())), "clean": kinds[CLEAN] / len(kept)}


def _check_distinct(name: str, values: list[Any]) -> None:
    if not values:
        raise JobError(f"{name} is empty")
    if twice := [value for number, value in enumerate(values) if value in values[:number]]:
        raise JobError(f"{name}: {twice[0]} is given twice")
