"""The curation experiment of CLIP: captioned images, some of whose captions are damaged.

The images are parted in two. One half teaches the judges: the score model and the CLIP of the CLIP score. In the other
half, which they have not seen, captions are damaged, and one CLIP is trained on what each rule keeps of it.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from omegaconf import MISSING
from tqdm import tqdm

from src.curation.measure_job import measure_pairs
from src.dataset.arrow_cache import IMAGE
from src.dataset.images import encoded_image
from src.dataset.records import DataSpec, Record, input_fingerprint, read_records, resolve_root
from src.dataset.writers import remove
from src.errors import JobError, RecordError
from src.evaluation.features import FeatureStore
from src.evaluation.retrieval_set import evaluate_retrieval
from src.evaluation.zero_shot import evaluate_set
from src.experiment.curation import ARMS, Curation, CurationConfig, run_plan, write_table
from src.experiment.damage import CLEAN, damage
from src.model.clip import load_clip
from src.training.clip_config import ClipConfig
from src.training.clip_run import train_clip

LEARN = "learn.parquet"
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
class ClipCurationConfig(CurationConfig):
    """Keys of config/nano/curation_experiment.yaml, where each is explained."""

    data: Data = field(default_factory=Data)
    judges: Judges = field(default_factory=Judges)
    train: ClipConfig = field(default_factory=ClipConfig)


class ClipCuration(Curation):
    """The experiment on CLIP, judged by zero-shot classification and retrieval."""

    arms = ARMS
    titles: ClassVar[Mapping[str, str]] = {"top1": "zero-shot top-1", "mean_recall": "retrieval, mean recall"}
    noun = "captions"
    script = "script/curation_experiment.sh"
    config: ClipCurationConfig

    def sources(self) -> dict[str, Any]:
        data = self.config.data
        prints = {name: input_fingerprint(self._given(getattr(data, name))) for name in ("captioned", "test")}
        return {**asdict(data), "input": prints}

    def write_data(self, shares: Iterable[float]) -> list[str]:
        """Write the two halves, the second with faults; and the test images by class.

        Which half an image is in goes by a digest of its id, so it does not depend on the order of the data.

        Raises:
            JobError: as ``read_records``; a half has fewer than two classes; a label of the test names no folder.
        """
        data = self.config.data
        rows = captioned_images(self._given(data.captioned))
        learn, pool = ([row for row in rows if _second(row["id"]) == second] for second in (False, True))
        for name, half in ((LEARN, learn), ("pool", pool)):
            if len({row["label"] for row in half}) < 2:
                raise JobError(f"{data.captioned}: {name} has fewer than two classes (data.label_column)")
        _write(learn, self.out / LEARN)
        for share in shares:
            texts, kinds = damage([r["captions"] for r in pool], [r["label"] for r in pool], share, seed=0)
            rows = [{**r, "captions": t, "kinds": k} for r, t, k in zip(pool, texts, kinds, strict=True)]
            _write(rows, self.pool(share))
        self._write_classes(captioned_images(self._given(data.test)))
        return [LEARN, *(self.pool(share).name for share in shares), self._classes.parent.name]

    def spec(self, pool: Path) -> DataSpec:
        return DataSpec(str(pool), image_column="image", text_column="captions", id_column="id", source_column="label")

    def values(self, scores: Path) -> dict[str, str]:
        """The CLIP score of the judge, in a file of its own for each: named after what its features depend on."""
        clip = load_clip(self.config.judges.clip)
        measures = scores / f"measures-{clip.fingerprint()}.parquet"
        if not measures.exists():
            measure_pairs(scores, measures, ["clip_score"], lambda: clip)
        return {"clip_score": str(measures)}

    def train(self, subset: Path, folder: Path, seed: int) -> dict[str, Any]:
        train_clip(run_plan(self.config.train, seed, folder, subset=str(subset)))
        store = FeatureStore(load_clip(str(folder / "final")), workers=2, progress=False)
        classes = evaluate_set(store, self._classes)
        retrieval = evaluate_retrieval(store, self._given(self.config.data.test))
        names = {"top1": classes.metrics, "mean_per_class_recall": classes.metrics, "mean_recall": retrieval.metrics}
        metrics = {name: metrics[name]["value"] for name, metrics in names.items()}
        return {**metrics, "counts": {result.task: result.counts for result in (classes, retrieval)}}

    @property
    def _classes(self) -> Path:
        return self.out / "test" / f"{self.config.data.set}_Image"

    def _write_classes(self, rows: list[dict[str, Any]]) -> None:
        """Write the images of each class into its folder, by their number: two ids may make one name of a file."""
        final = self._classes.parent
        partial = final.with_name(f".{final.name}.partial")
        remove(partial)
        for number, row in enumerate(rows):
            if row["label"] in ("", ".", "..") or "/" in row["label"]:
                raise JobError(
                    f"{self.config.data.test}: {row['id']} has the label {row['label']!r}, which names no class folder"
                )
            path = partial / self._classes.name / row["label"] / f"{number:07d}.{row['suffix']}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"]["bytes"])
        remove(final)
        partial.replace(final)

    def _given(self, path: str) -> DataSpec:
        data = self.config.data
        return DataSpec(
            path,
            image_column=data.image_column,
            text_column=data.text_column,
            source_column=data.label_column,
            id_column=data.id_column,
        )


def captioned_images(spec: DataSpec) -> list[dict[str, Any]]:
    """The distinct images of a data set, each once with all its distinct captions; held in memory.

    Records of one image, by its content, are one, with the id and label of the first; that a later one repeats the id
    is then no fault. Records that cannot be used are counted and printed, by kind of error.

    Returns:
        dicts of ``id``, ``image`` (bytes), ``suffix`` (of a file of it), ``captions``, ``label``.

    Raises:
        JobError: as ``read_records``, or no record can be used.
    """
    root = resolve_root(spec)
    images: dict[bytes, dict[str, Any]] = {}
    errors: Counter[str] = Counter()
    records = 0
    for record in tqdm(read_records(spec), f"reading {Path(spec.path).name}", unit=" records"):
        records += 1
        try:
            content, kind = _content(record, root)
            key = hashlib.blake2b(content, digest_size=16).digest()
            known = key in images
            if record.error is not None and record.error.kind != ("duplicate_id" if known else "empty_text"):
                raise record.error  # the first record of an image without a text still gives its id
            image = {"bytes": content, "path": None}
            row = {"id": record.id, "image": image, "suffix": kind.lower(), "captions": [], "label": record.source}
            texts: list[str] = images.setdefault(key, row)["captions"]
            if not record.captions:
                raise RecordError("empty_text", f"{record.id}: no caption with a letter or digit")
        except RecordError as error:
            errors[error.kind] += 1
            continue
        texts += [text for text in record.captions if text not in texts]
    rows = [row for row in images.values() if row["captions"]]
    failed = errors.total()
    kinds = f" ({', '.join(f'{kind} {count:,}' for kind, count in sorted(errors.items()))})" if failed else ""
    said = f"{records:,} records = {records - failed:,} usable of {len(rows):,} images + {failed:,} errors{kinds}"
    if not rows:
        raise JobError(f"{spec.path}: {said}")
    print(f"{spec.path}: {said}")
    return rows


def _content(record: Record, root: Path) -> tuple[bytes, str]:
    """The encoded image of a record, and its format."""
    if len(record.images) != 1:
        raise record.error or RecordError("bad_record", f"{record.id}: {len(record.images)} images; CLIP takes one")
    return encoded_image(record.images[0], root, formats=("JPEG", "PNG"))


def _second(name: str) -> bool:
    return bool(hashlib.md5(name.encode(), usedforsecurity=False).digest()[0] % 2)


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    whole = [{"kinds": [CLEAN] * len(row["captions"]), **row} for row in rows]
    write_table(pa.Table.from_pylist(whole, _SCHEMA), path)
