"""Whole scoring jobs: where their time goes, and whether their memory grows with the data."""

import argparse
import csv
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from src.benchmark.measure import jpeg, noise, peak_memory, sentences
from src.curation import job as jobs
from src.curation import scorer as scorers
from src.curation.job import Job
from src.curation.scorer import WINDOW, Scorer
from src.dataset.records import DataSpec, read_records, resolve_root
from src.dataset.scene_text import captions
from src.dataset.scenes import make_scene, scene_seeds

SCORE = """
import sys
from src.curation.job import run_job
from src.curation.scorer import Scorer
from src.dataset.records import DataSpec
data, model, output = sys.argv[1:]
run_job(DataSpec(data), Scorer.from_pretrained(model, device="cpu", workers=2), model, output)
"""
PARTS = {
    "model": "the model's forward passes",
    "batching": "batches made of rows, shared prefixes found",
    "waiting": "waiting for images and token ids made in the background",
    "reading": "records read",
    "writing": "rows of the table made, shards written and synced",
    "rest": "rows counted, input fingerprinted, summary",
}


class Clock:
    """Seconds of this thread in nested parts of a job; what a part calls is its own part's alone."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inside: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._turn()
        self._inside.append(name)
        try:
            yield
        finally:
            self._turn()
            self._inside.pop()

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._inside:
            self.spent[self._inside[-1]] += now - self._since
        self._since = now

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, its time told to a part."""

        def inner(*args: Any, **options: Any) -> Any:
            with self.part(name):
                return call(*args, **options)

        return inner

    def steps(self, name: str, call: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """A call that returns an iterator, whose every step is told to a part."""

        def inner(*args: Any, **options: Any) -> Iterator[Any]:
            with self.part(name):
                iterator = iter(call(*args, **options))
            while True:
                with self.part(name):
                    item = next(iterator, None)
                if item is None:
                    return
                yield item

        return inner


def outside(args: argparse.Namespace) -> float:
    """Print where the time of a job on made scenes goes; return the share of it spent outside the model."""
    torch.set_num_threads(1)
    print("torch computes on one thread, so that two decoding workers have the other cores to themselves")
    with tempfile.TemporaryDirectory() as folder:
        spec = DataSpec(str(write_scenes(Path(folder), args.pairs, args.side)))
        scorer = Scorer.from_pretrained(args.model, workers=2)
        scorer.token_budget = args.batch * _usual_length(scorer, spec)
        shares = []
        for number in range(args.repeats):
            spent = time_of_parts(Job.of(spec, args.model, Path(folder, str(number))), scorer)
            shares.append((1 - spent["model"] / sum(spent.values()), spent))
    share, spent = sorted(shares, key=lambda pair: pair[0])[len(shares) // 2]
    wall = sum(spent.values())
    what = f"{args.pairs:,} pairs, {args.side}-px PNG and JPEG files, batches of {args.batch} pairs"
    print(f"{what}: {args.pairs / wall:.1f} pairs/s")
    for part, means in PARTS.items():
        print(f"{part:<10} {spent[part]:8.3f} s {spent[part] / wall:7.1%}  {means}")
    print(f"share of the time outside the model, median of {args.repeats} runs: {share:.1%}")
    return share


def time_of_parts(job: Job, scorer: Scorer) -> dict[str, float]:
    """Run a job; the wall time of its main thread by part, in seconds, adding up to the whole."""
    clock, model = Clock(), scorer.model
    with (
        patch.object(model, "forward", clock.timed("model", model.forward)),
        patch.object(model, "encode_images", clock.timed("model", model.encode_images)),
        patch.object(scorers, "score_rows", clock.timed("batching", scorers.score_rows)),
        patch.object(Scorer, "stream", clock.steps("waiting", Scorer.stream)),
        patch.object(jobs, "read_records", clock.steps("reading", jobs.read_records)),
        patch.object(jobs, "table_rows", clock.steps("writing", jobs.table_rows)),
        patch.object(jobs, "write_shard", clock.timed("writing", jobs.write_shard)),
        clock.part("rest"),
    ):
        job.run(lambda: scorer)
    return dict(clock.spent)


def memory(args: argparse.Namespace) -> float:
    """Print the peak memory of a scoring job on few and on many records; return how many times as much many take."""
    peaks = []
    for records in (args.few, args.many):
        with tempfile.TemporaryDirectory() as folder:
            data = write_noise(Path(folder), records, args)
            peaks.append(peak_memory(SCORE, [str(data), args.model, f"{folder}/out"]))
        print(f"{records:>8,} records ({args.format})  peak memory {peaks[-1] / 2**20:,.0f} MiB", flush=True)
    return peaks[1] / peaks[0]


def write_scenes(folder: Path, count: int, side: int) -> Path:
    """A caption table of made scenes, every other one a JPEG file; its path."""
    rng = np.random.default_rng(0)
    rows = []
    for number, seed in enumerate(scene_seeds(0, count)):
        scene = make_scene(seed, size=side)
        name = f"{number}.{'png' if number % 2 else 'jpg'}"
        scene.image.save(folder / name)
        rows.append((name, captions(scene.facts, rng, 1)[0]))
    return _write_csv(folder / "scenes.csv", rows)


def write_noise(folder: Path, records: int, args: argparse.Namespace) -> Path:
    """A data set of so many captions over ``args.images`` images, as files of a CSV or inside a Parquet file."""
    rng = np.random.default_rng(0)
    names, contents = [f"{number}.jpg" for number in range(args.images)], []
    for name in names:
        contents.append(jpeg(noise(rng, args.side)))
        (folder / name).write_bytes(contents[-1])
    shown = rng.integers(0, args.images, records)
    said = sentences(rng, records, args.words)
    if args.format == "csv":
        return _write_csv(folder / "data.csv", [(names[k], text) for k, text in zip(shown, said, strict=True)])
    images = [{"bytes": contents[k], "path": names[k]} for k in shown]
    pq.write_table(pa.table({"image": images, "title": said}), folder / "data.parquet", row_group_size=1024)
    return folder / "data.parquet"


def _write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("filename", "title"), *rows])
    return path


def _usual_length(scorer: Scorer, spec: DataSpec) -> int:
    """Mean number of tokens of the first pairs."""
    encoder = scorer.rooted(resolve_root(spec)).encoder
    prompts = [
        encoder.prompt({"text": record.texts[0]}, [encoder.image(record.images[0])])
        for record in islice(read_records(spec), WINDOW)
    ]
    return round(mean(len(ids) for ids in encoder.token_ids(prompts) if isinstance(ids, list)))
