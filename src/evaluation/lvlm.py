"""Evaluation of a vision-language model on tasks: ask, keep every answer, score, write.

An answer is kept under all that it depends on: the model's files, back end, sampling, prompt and images' paths. Scores
are computed anew from the answers each time. Equal answers give equal files, whatever the number of processes.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from src.curation.job import weights_of
from src.dataset.images import image_size
from src.errors import JobError, RecordError
from src.evaluation.adapters import Adapter
from src.evaluation.answer_parts import AnswerParts, Line, digest, record_error
from src.evaluation.backends import Sampling
from src.evaluation.metrics import Grounded, Scored, score_answers, score_captions, score_grounding
from src.evaluation.results import UNUSABLE_SHOWN, Result, result_path
from src.evaluation.tasks import Sample, Task, read_samples
from src.model.checkpoint import locate
from src.rewards.boxes import BOX_FORMATS, Box, parse_boxes

# Options of back ends that answers may depend on.
DECIDING = ("dtype", "image_library", "max_pixels", "max_prompt_tokens", "own_keys_only", "trust_remote_code", "url")


def read_options(given: Sequence[str]) -> dict[str, Any]:
    """Options of a back end from ``KEY=VALUE``, values as in YAML.

    Raises:
        JobError: a value that is no YAML.
    """
    try:
        return {key: yaml.safe_load(value) for key, value in (option.partition("=")[::2] for option in given)}
    except yaml.YAMLError as error:
        raise JobError(f"--option takes KEY=VALUE: {' '.join(str(error).split())}") from error


def deciding(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that answers may depend on."""
    return {key: value for key, value in options.items() if key in DECIDING}


@dataclass(frozen=True)
class Job:
    """What is evaluated, on what, and where it goes.

    Attributes:
        model: as given: a folder, a hub id, or a server's name for it.
        model_type: under which the adapter was made.
        data_root: folder of the annotations.
        image_root: that images must lie in.
        output: folder of results; answers are kept in ``answers`` below it.
        sampling: of every answer.
        options: of the back end, those that answers may depend on.
        limit: questions of each task; None: all.
        blind: ask without the images.
        published: also by the published rules.
    """

    model: str
    model_type: str
    data_root: Path
    image_root: Path
    output: Path
    sampling: Sampling
    options: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    blind: bool = False
    published: bool = False

    @cached_property
    def files(self) -> list[dict[str, Any]] | str:
        """Fingerprints of the model's files."""
        return weights_of(self.model)

    def group(self, task: Task) -> str:
        """What results call the task's group."""
        return f"{task.group}_blind" if self.blind else task.group


@dataclass
class Team:
    """The processes of a run.

    Attributes:
        rank, world: of this one, and how many there are.
        wait: returns once all have called it.
    """

    rank: int = 0
    world: int = 1
    wait: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Answered:
    """A task with all of its answers.

    Attributes:
        fresh: answers made in this run, by all processes.
        seconds: that they took.
    """

    task: Task
    samples: list[Sample]
    lines: list[Line]
    fresh: int
    seconds: float

    @property
    def speed(self) -> str:
        """The throughput, as a line."""
        kept = len(self.lines) - self.fresh
        rate = f", {self.fresh / self.seconds:.2f} a second" if self.fresh and self.seconds else ""
        return f"{self.task.name}: {self.fresh:,} answers in {self.seconds:.1f} s{rate}; {kept:,} were kept from before"


def ask(job: Job, adapter: Adapter, task: Task, team: Team, force: bool = False) -> Answered:
    """Have every question of a task answered, those without an answer on disk, by all processes together.

    Args:
        force: forget earlier answers.

    Raises:
        JobError: as :func:`src.evaluation.tasks.read_samples`, or the model cannot be used.
    """
    samples = read_samples(job.data_root / task.file, job.limit, task.images)
    asked = [digest(adapter.turns(task, sample), below(job.data_root, sample.images)) for sample in samples]
    parts = AnswerParts(_answers_folder(job, adapter) / (job.group(task) + "." + task.name), team.rank, team.world)
    if force:
        team.wait()
        if team.rank == 0:
            parts.forget()
        team.wait()
    before = parts.read(asked)
    team.wait()  # nobody writes before all have read
    begin = time.perf_counter()
    missing = [index for index in range(len(samples)) if index not in before or before[index].error]
    todo = [samples[index] for index in parts.mine(missing)]
    if todo:
        with parts:
            for line in _lines(job, adapter, task, todo, asked):
                parts.write(line)
    team.wait()
    seconds = time.perf_counter() - begin
    found = parts.read(asked)
    if lost := [index for index in range(len(samples)) if index not in found]:
        raise JobError(f"{task.name}: {len(lost)} questions were not answered, the first is {samples[lost[0]].id}")
    return Answered(task, samples, [found[index] for index in range(len(samples))], len(missing), seconds)


def below(root: Path, images: Sequence[str]) -> list[str]:
    """The paths from the data root on: data that have moved are the same."""
    return [image.removeprefix(f"{root}/") for image in images]


def _answers_folder(job: Job, adapter: Adapter) -> Path:
    """Named by the model, and a digest of all that answers depend on besides the question."""
    there = Path(locate(job.model))
    place = str(there.resolve()) if there.exists() else job.model
    depends = [job.files, place, job.model_type, job.options, adapter.system]
    name = "".join(c if c.isalnum() or c in ".-_" else "_" for c in Path(job.model).name) or job.model_type
    return job.output / "answers" / f"{name}-{digest(*depends, asdict(job.sampling))}"


def _lines(job: Job, adapter: Adapter, task: Task, todo: Sequence[Sample], asked: Sequence[str]) -> Iterator[Line]:
    """A line for each question, in order; the last of a conversation that could not be read included."""
    requests = [adapter.request(task, s, job.sampling, job.blind) for s in todo if not s.error]
    made = adapter.backend.stream(requests)
    for sample in todo:
        size, text, finish = None, None, None
        more: Sequence[tuple[str, str]] = ()
        error = sample.error
        if not error:
            generation = next(made)
            error = generation.error
            if not error:
                (text, finish), *more = zip(generation.texts, generation.finish, strict=True)
        if task.group == "grounding" and not sample.error:
            size, problem = _size(job, sample)
            error = error or (problem if not size else None)
        told = (error.kind, str(error)) if error else None
        yield Line(sample.index, asked[sample.index], text, finish, size, told, tuple(more))


def _size(job: Job, sample: Sample) -> tuple[tuple[int, int] | None, RecordError | None]:
    """(width, height) of what true boxes are in: the image's, unless the annotations tell of another size.

    Those name height and width, and some the other way round: the image decides.
    """
    try:
        real = image_size(sample.images[0], job.image_root)
    except (RecordError, IndexError) as error:
        return sample.size, error if isinstance(error, RecordError) else None
    turned = sample.size is None or sample.size in (real, real[::-1])
    return (real if turned else sample.size), None


def evaluate(job: Job, adapter: Adapter, answered: Answered) -> Result:
    """Score the answers to a task."""
    task, samples, lines = answered.task, answered.samples, answered.lines
    errors = [record_error(line) for line in lines]
    scored = _score(job, adapter, answered, errors)
    for row, error in zip(scored.rows, errors, strict=True):
        row["error"] = error.kind if error else None
    _write_samples(_results_path(job, task).with_suffix(".jsonl"), samples, lines, scored)
    counts, unusable = usable(samples, errors)
    counts["cut"] = sum(line.finish == "length" for line in lines)
    boxes = adapter.family.boxes if task.group == "grounding" else None
    return Result(
        job.group(task),
        task.name,
        job.model,
        scored.metrics,
        counts | scored.counts,
        {**settings(job, adapter, task), "boxes": boxes, "blind": job.blind},
        scored.details | {"unusable": unusable},
    )


def settings(job: Job, adapter: Adapter, task: Task) -> dict[str, Any]:
    """What the answers to a task depend on, as a result tells it."""
    return {
        "data": str(job.data_root / task.file),
        "image_root": str(job.image_root),
        "model_type": job.model_type,
        "model_files": job.files,
        "prompt": adapter.family.prompts.get(task.prompt, "{question}"),
        "instruction": task.instruction,
        "system": adapter.system,
        "answer": task.answer,
        "sampling": asdict(job.sampling),
        **job.options,
        "limit": job.limit,
    }


def usable(
    samples: Sequence[Sample], errors: Sequence[RecordError | None]
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The counts of records that a result has, and the first of those that could not be used."""
    bad = [(sample.id, error) for sample, error in zip(samples, errors, strict=True) if error]
    kinds = dict(sorted(Counter(error.kind for _, error in bad).items()))
    counts = {"records": len(samples), "ok": len(samples) - len(bad), "errors": kinds}
    return counts, [{"id": name, "kind": error.kind, "message": str(error)} for name, error in bad[:UNUSABLE_SHOWN]]


def check_places(job: Job, tasks: Sequence[Task]) -> None:
    """Raises JobError where a result would take the place of one of other data."""
    for task in tasks:
        _results_path(job, task)


def _results_path(job: Job, task: Task) -> Path:
    return result_path(job.output, job.group(task), task.name, job.model, {"data": str(job.data_root / task.file)})


def _score(job: Job, adapter: Adapter, answered: Answered, errors: list[RecordError | None]) -> Scored:
    task, samples = answered.task, answered.samples
    texts = [line.text for line in answered.lines]
    if task.group == "caption":
        return score_captions([sample.references for sample in samples], texts)
    if task.group != "grounding":
        return score_answers(task, samples, texts, job.published)
    boxes = []
    for number, (sample, line) in enumerate(zip(samples, answered.lines, strict=True)):
        true = true_boxes(task, sample, line.size)
        if not true and sample.references and not sample.error:
            errors[number] = RecordError(
                "no_true_box", f"{sample.id}: no box with an area in {sample.reference[:80]!r}"
            )
        size = line.size or sample.size
        predicted = adapter.boxes(line.text, size) if size and line.text else []
        published = adapter.published_boxes(line.text, size) if size and line.text else None
        boxes.append(Grounded(true, predicted, published))
    return score_grounding(boxes, job.published)


def true_boxes(task: Task, sample: Sample, size: tuple[int, int] | None) -> list[Box]:
    """The right boxes of a sample in pixels of an image of ``size``."""
    bound = BOX_FORMATS[task.boxes].bound
    known = size or ((int(bound), int(bound)) if bound else None)  # without the image only their number counts
    return parse_boxes(" ".join(sample.references), task.boxes, known if bound else None)


def _write_samples(path: Path, samples: Sequence[Sample], lines: Sequence[Line], scored: Scored) -> None:
    """A line for each question, in order: keys of the published file, and what was read in the answer."""
    write_lines(path, (
        {
            "id": sample.id, "filename": [Path(image).name for image in sample.images],
            "size": line.size or sample.size, "query": sample.question, "options": dict(sample.options),
            "answer": list(sample.references), "pred": line.text, "finish": line.finish,
            "type": list(sample.types), **row,
        }
        for sample, line, row in zip(samples, lines, scored.rows, strict=True)
    ))  # fmt: skip


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON Lines file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.replace(path)
