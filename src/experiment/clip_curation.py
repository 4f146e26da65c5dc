"""Does curation pay? One CLIP, trained with equal compute on what several rules keep of data with known faults.

Captioned images are parted in two. One half teaches the judges: the score model and the CLIP of the CLIP score. In the
other half, which they have not seen, captions are damaged; every rule keeps its part of that half, and the same CLIP is
trained on each part by the same number of steps. What it reaches on held-out images says what the part was worth.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import MISSING, OmegaConf

from src.curation.job import run_job
from src.curation.measure_job import measure_pairs
from src.curation.rules import Rule
from src.curation.score_table import differences, named
from src.curation.scorer import Scorer
from src.curation.select import select_subset
from src.dataset.arrow_cache import IMAGE
from src.dataset.images import encoded_image
from src.dataset.records import DataSpec, read_records, resolve_root
from src.errors import JobError
from src.evaluation.features import FeatureStore
from src.evaluation.retrieval_set import evaluate_retrieval
from src.evaluation.zero_shot import evaluate_set
from src.experiment.damage import CLEAN, damage
from src.model.clip import load_clip
from src.training.clip_config import ClipConfig
from src.training.clip_run import train_clip

LEARN, POOL = "learn.parquet", "pool.parquet"
ARMS = ("everything", "random", "length", "clip_score", "score", "oracle")
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", IMAGE),
        ("captions", pa.list_(pa.string())),
        ("kinds", pa.list_(pa.string())),
        ("label", pa.string()),
    ]
)


@dataclass
class Data:
    captioned: str = MISSING
    test: str = MISSING
    image_column: str = "image"
    text_column: str = "captions"
    label_column: str = "label"
    id_column: str | None = "filename"
    set: str = "AID"


@dataclass
class Judges:
    scorer: str = "${..output_dir}/scorer/scorer"
    clip: str = "${..output_dir}/clip_learn/final"


@dataclass
class ExperimentConfig:
    """Keys of config/nano/curation_experiment.yaml, where each is explained."""

    data: Data = field(default_factory=Data)
    judges: Judges = field(default_factory=Judges)
    train: ClipConfig = field(default_factory=ClipConfig)
    shares: list[float] = field(default_factory=lambda: [0.3, 0.6])
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    arms: list[str] = field(default_factory=lambda: list(ARMS))
    keep: float = 0.3
    prepare_only: bool = False
    output_dir: str = "output/curation_experiment"
    results_dir: str = "${.output_dir}/results"


def prepare(config: ExperimentConfig) -> None:
    """Write the two halves and, per share of faults, the second half with them; and the test images by class.

    Which half an image is in goes by a digest of its id, so it does not depend on the order of the data.

    Raises:
        JobError: as ``read_records``, or a half has fewer than two classes.
    """
    out = Path(config.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    rows = list(_rows(_spec(config, config.data.captioned)))
    halves = {LEARN: [row for row in rows if not _second(row["id"])], POOL: [row for row in rows if _second(row["id"])]}
    for name, half in halves.items():
        if len({row["label"] for row in half}) < 2:
            raise JobError(f"{config.data.captioned}: {name} has fewer than two classes (data.label_column)")
        _write(half, out / name)
    pool = halves[POOL]
    for share in config.shares:
        texts, kinds = damage([r["captions"] for r in pool], [r["label"] for r in pool], share, seed=0)
        rows = [{**r, "captions": t, "kinds": k} for r, t, k in zip(pool, texts, kinds, strict=True)]
        _write(rows, _pool(config, share))
    for row in _rows(_spec(config, config.data.test)):
        if row["label"] in ("", ".", "..") or "/" in row["label"]:
            raise JobError(
                f"{config.data.test}: {row['id']} has the label {row['label']!r}, which names no class folder"
            )
        folder = _classes(config) / row["label"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / (row["id"].replace("/", "_") + ".jpg")).write_bytes(row["image"]["bytes"])


def judge(config: ExperimentConfig, share: float) -> Path:
    """Score the damaged half and measure its CLIP score; the folder of the score table."""
    out = Path(config.output_dir, f"scores-{share:g}")
    for name, path in asdict(config.judges).items():
        if not Path(path).exists():
            raise JobError(f"judges.{name}: no such model: {path}; script/curation_experiment.sh trains it first")
    spec = DataSpec(str(_pool(config, share)), image_column="image", text_column="captions", id_column="id")
    run_job(spec, Scorer.from_pretrained(config.judges.scorer), config.judges.scorer, out)
    if not (out / "measures.parquet").exists():
        measure_pairs(out, out / "measures.parquet", ["clip_score"], lambda: load_clip(config.judges.clip))
    return out


def truth(config: ExperimentConfig, share: float, scores: Path) -> Path:
    """Write what only this experiment knows, by pair: ``kind``, and ``oracle``, a random number for clean pairs.

    The damaged ones have -1 there, so that a cut by ``oracle`` keeps clean pairs at random.
    """
    kinds = pq.read_table(_pool(config, share), columns=["kinds"])["kinds"].to_pylist()
    table = pq.read_table(scores / "scores", columns=["id", "row", "text_index"])
    places = zip(table["row"].to_pylist(), table["text_index"].to_pylist(), strict=True)
    kind = [kinds[row][index] for row, index in places]
    chance = np.random.default_rng(0).random(len(kind))
    oracle = np.where(np.array(kind) == CLEAN, chance, -1.0)
    target = Path(config.output_dir, f"truth-{share:g}.parquet")
    pq.write_table(pa.table({"id": table["id"], "kind": kind, "oracle": oracle}), target)
    return target


def rule(arm: str, keep: float, seed: int, scores: Path, truth_file: Path) -> Rule:
    """What an arm keeps: the part ``keep`` by its value, or everything."""
    by = {"length": "text_chars", "everything": "score"}.get(arm, arm)
    source = {"clip_score": str(scores / "measures.parquet"), "oracle": str(truth_file)}.get(arm)
    return Rule(fraction=1.0 if arm == "everything" else keep, by=by, seed=seed, scores_from=source)


def run(config: ExperimentConfig) -> list[dict[str, Any]]:
    """Make every part, train on it and measure; what is done already is not done again. One entry a training.

    Raises:
        JobError: an unknown arm, a judge or the start of training is not there, or as the steps.
    """
    if unknown := [arm for arm in config.arms if arm not in ARMS]:
        raise JobError(f"arms: no {unknown[0]!r}; known: {', '.join(ARMS)}")
    if "oracle" in config.arms and max(config.shares) > 1 - config.keep:
        raise JobError(
            f"of shares={max(config.shares):g} too few clean captions are left for the oracle's keep={config.keep:g}"
        )
    if not _pool(config, config.shares[-1]).exists():
        prepare(config)
    found = []
    for share in config.shares:
        scores = judge(config, share)
        truth_file = truth(config, share, scores)
        for seed in config.seeds:
            found += [_trained(config, share, arm, seed, scores, truth_file) for arm in config.arms]
    return found


def _trained(
    config: ExperimentConfig, share: float, arm: str, seed: int, scores: Path, truth_file: Path
) -> dict[str, Any]:
    """What one training reached, from its file where it has been."""
    folder = Path(config.output_dir, "runs", f"{share:g}-{arm}-{seed}")
    target = folder.with_name(f"{folder.name}.json")
    given = {"keep": config.keep, **asdict(config.data), **asdict(config.judges), "train": asdict(config.train)}
    settings = json.loads(json.dumps(given))
    if target.exists():
        earlier = json.loads(target.read_text())
        if changed := list(differences(earlier.pop("settings"), settings)):
            raise JobError(f"{target} is of other settings: {named(changed)}. Use a new output_dir")
        return earlier
    subset = folder.with_name(f"{folder.name}-subset")
    select_subset(scores, subset, rule(arm, config.keep, seed, scores, truth_file))
    facts = {"share": share, "arm": arm, "seed": seed, **_kinds(subset / "subset_ids.parquet", truth_file)}
    plan = _plan(config, subset, folder, seed)
    train_clip(plan)
    facts |= _measured(config, folder / "final")
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps({**facts, "settings": settings}, indent=1))
    partial.replace(target)
    shutil.rmtree(folder)  # some 30 MB a training that nothing reads again
    return facts


def _plan(config: ExperimentConfig, subset: Path, folder: Path, seed: int) -> ClipConfig:
    given = {
        "seed": seed,
        "save_folder": str(folder),
        "save_overwrite": True,
        "data": {"subset": str(subset), "cache_dir": str(folder / "cache")},
    }
    plan = OmegaConf.merge(OmegaConf.structured(config.train), given)
    return OmegaConf.to_object(plan)  # type: ignore[return-value]


def _measured(config: ExperimentConfig, model: Path) -> dict[str, float]:
    store = FeatureStore(load_clip(str(model)), workers=2, progress=False)
    classes = evaluate_set(store, _classes(config))
    retrieval = evaluate_retrieval(store, _spec(config, config.data.test))
    names = {"top1": classes.metrics, "mean_per_class_recall": classes.metrics, "mean_recall": retrieval.metrics}
    return {name: metrics[name]["value"] for name, metrics in names.items()}


def _kinds(subset: Path, truth_file: Path) -> dict[str, Any]:
    """How many pairs a part has, and of which kinds."""
    kept = set(pq.read_table(subset, columns=["id"])["id"].to_pylist())
    table = pq.read_table(truth_file, columns=["id", "kind"])
    pairs = zip(table["id"].to_pylist(), table["kind"].to_pylist(), strict=True)
    kinds = Counter(kind for name, kind in pairs if name in kept)
    return {"pairs": len(kept), "kinds": dict(sorted(kinds.items())), "clean": kinds[CLEAN] / len(kept)}


def _spec(config: ExperimentConfig, path: str) -> DataSpec:
    data = config.data
    return DataSpec(
        path,
        image_column=data.image_column,
        text_column=data.text_column,
        source_column=data.label_column,
        id_column=data.id_column,
    )


def _rows(spec: DataSpec) -> Iterator[dict[str, Any]]:
    """Usable records with their distinct captions and the bytes of their image."""
    root = resolve_root(spec)
    for record in read_records(spec):
        if record.error is None and record.captions and record.images:
            content, _ = encoded_image(record.images[0], root)
            image = {"bytes": content, "path": None}
            yield {"id": record.id, "image": image, "captions": record.captions, "label": record.source}


def _second(name: str) -> bool:
    return bool(hashlib.md5(name.encode(), usedforsecurity=False).digest()[0] % 2)


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    whole = [{"kinds": [CLEAN] * len(row["captions"]), **row} for row in rows]
    pq.write_table(pa.Table.from_pylist(whole, _SCHEMA), path, row_group_size=256)


def _pool(config: ExperimentConfig, share: float) -> Path:
    return Path(config.output_dir, f"pool-{share:g}.parquet")


def _classes(config: ExperimentConfig) -> Path:
    return Path(config.output_dir, "test", f"{config.data.set}_Image")
