"""Best of N: several answers to every question, scores of each, and what every way to choose among them is worth.

Candidates are drawn by :func:`src.evaluation.lvlm.ask` and scored by :class:`src.evaluation.judges.ScoreFile`, each
resumable by itself; here the two are joined, in one JSON Lines file of all candidates with all scores, and evaluated.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.evaluation.adapters import Adapter
from src.evaluation.answer_parts import Line, digest, record_error
from src.evaluation.judges import Question, ScoreFile, part_of
from src.evaluation.lvlm import Answered, Job, below, settings, true_boxes, usable, write_lines
from src.evaluation.metrics import judged
from src.evaluation.metrics.base import means_of_groups, ratios
from src.evaluation.results import Metric, Result, result_path
from src.evaluation.selectors import PLAIN, Candidates, same_boxes, same_read, sizes_up_to
from src.evaluation.tasks import Sample, Task
from src.rewards.boxes import THRESHOLDS, GroundingCounts

AT = THRESHOLDS.index(0.5)


@dataclass(frozen=True)
class _Read:
    """A question's candidates, read.

    Attributes:
        values: float (n, 1) of answers: right or wrong; (n, thresholds) of boxes: true boxes found.
        whole: what a value is of: 1, or the number of true boxes.
    """

    candidates: Candidates
    values: np.ndarray
    whole: int
    told: list[dict[str, Any]]


def texts_of(line: Line) -> list[tuple[str, str | None]]:
    """The candidates of a question and how each ended; none where it could not be asked."""
    return [] if line.text is None else [(line.text, line.finish), *line.more]


def questions_of(job: Job, adapter: Adapter, answered: Answered, part: str) -> list[Question]:
    """What a judge gets: each question once with its distinct answers, ``part`` of them (see ``judges.PARTS``)."""
    asked = []
    for sample, line in zip(answered.samples, answered.lines, strict=True):
        answers = dict.fromkeys(part_of(text, part) for text, _ in texts_of(line))
        text = adapter.turns(answered.task, sample)[-1]["content"]
        asked.append(Question(_key(job, text, sample), sample.images, text, list(answers)))
    return asked


def evaluate(
    job: Job, adapter: Adapter, answered: Answered, judges: Sequence[ScoreFile], main: str = "majority_voting"
) -> Result:
    """Write all candidates with their scores, and return what each selector is worth.

    Args:
        judges: whose scores count; the first one decides ties of ``majority_voting``.
        main: selector of the ``pred`` of every question.

    Returns:
        A metric for each selector with all N candidates: the share of right picks, or of true boxes that the picks
        find at an IoU of 0.5. ``random`` is the mean over candidates. In ``details``: ``curve`` by N; ``gains`` over
        ``first`` and ``random``, question by question; ``types``, or ``iou`` by threshold.
    """
    task = answered.task
    read = [_read(job, adapter, task, sample, line, judges) if texts_of(line) else None
            for sample, line in zip(answered.samples, answered.lines, strict=True)]  # fmt: skip
    names = [*PLAIN, *(name for file in judges for name in (file.path.stem, f"weighted_{file.path.stem}"))]
    n = job.sampling.n
    wholes = [one.whole if one else _whole(task, sample, line)
              for one, sample, line in zip(read, answered.samples, answered.lines, strict=True)]  # fmt: skip
    worth = {
        name: {size: [one.candidates.worth(name, size) if one else 0.0 for one in read] for size in sizes_up_to(n)}
        for name in names
    }
    last = {name: worth[name][n] for name in names}
    figures = {(name, f"{size}"): row for name in names for size, row in worth[name].items()}
    over = {
        (name, other): np.subtract(last[name], last[other]).tolist()
        for name in names
        for other in ("first", "random")
        if name not in ("first", "random")
    }
    details: dict[str, Any] = {"curve": _nested(ratios(figures, wholes)), "gains": _nested(ratios(over, wholes))}
    if task.group == "grounding":
        at = {(name, f"{t}"): _found_at(name, read, n, k) for name in names for k, t in enumerate(THRESHOLDS)}
        details["iou"] = _nested(ratios(at, wholes))
    elif any(sample.types for sample in answered.samples):
        types = [sorted({task.types.get(one, one) for one in sample.types}) for sample in answered.samples]
        details["types"] = {name: means_of_groups(last[name], types)[1] for name in names}  # type: ignore[arg-type]
    counts, details["unusable"] = usable(answered.samples, [record_error(line) for line in answered.lines])
    told = [row for one in read if one for row in one.told]
    counts |= {
        "candidates": len(told), "cut": sum(row["finish"] == "length" for row in told),
        "unparsed": sum(row["unparsed"] for row in told),
        "unscored": {file.path.stem: sum(row["scores"][file.path.stem] is None for row in told) for file in judges},
    }  # fmt: skip
    result = Result(
        "best_of_n", task.name, job.model, {name: details["curve"][name][f"{n}"] for name in names}, counts,
        {**settings(job, adapter, task), "judges": {file.path.stem: file.judge for file in judges}}, details,
    )  # fmt: skip
    path = result_path(job.output, result.task, result.set, result.model, result.settings).with_suffix(".jsonl")
    _write(path, answered.samples, answered.lines, read, main)
    return result


def _key(job: Job, text: str, sample: Sample) -> str:
    return digest(text, below(job.data_root, below(job.image_root, sample.images)))


def _whole(task: Task, sample: Sample, line: Line) -> int:
    return len(true_boxes(task, sample, line.size)) if task.group == "grounding" else 1


def _read(job: Job, adapter: Adapter, task: Task, sample: Sample, line: Line, judges: Sequence[ScoreFile]) -> _Read:
    texts = texts_of(line)
    told: list[dict[str, Any]] = [{"text": text, "finish": finish} for text, finish in texts]
    key = _key(job, adapter.turns(task, sample)[-1]["content"], sample)
    for row in told:
        row["scores"] = {file.path.stem: file.scores.get(file.key(key, part_of(row["text"], file.judge["part"])))
                         for file in judges}  # fmt: skip
    scores = {file.path.stem: np.array([row["scores"][file.path.stem] for row in told], dtype=np.float64)
              for file in judges}  # fmt: skip
    if task.group != "grounding":
        found = [judged(task, sample, text) for text, _ in texts]
        for row, one in zip(told, found, strict=True):
            row |= {"read": one.answer, "right": one.right, "unparsed": one.unparsed}
        values = np.array([[float(one.right)] for one in found])
        return _Read(Candidates(values[:, 0], same_read([one.answer for one in found]), scores), values, 1, told)
    size = line.size or sample.size
    true = true_boxes(task, sample, line.size)
    boxes = [adapter.boxes(text, size) if size else [] for text, _ in texts]
    values = np.array([list(GroundingCounts.of(true, own).hits.values()) for own in boxes], dtype=np.float64)
    for row, own, hits in zip(told, boxes, values[:, AT].tolist(), strict=True):
        row |= {"boxes": [[round(side, 2) for side in box] for box in own], "hits": int(hits), "unparsed": not own}
    return _Read(Candidates(values[:, AT], same_boxes(boxes), scores), values, len(true), told)


def _nested(flat: Mapping[tuple[str, str], Metric]) -> dict[str, dict[str, Metric]]:
    nested: dict[str, dict[str, Metric]] = {}
    for (name, key), metric in flat.items():
        nested.setdefault(name, {})[key] = metric
    return nested


def _found_at(name: str, read: Sequence[_Read | None], n: int, k: int) -> list[float]:
    """What a selector's pick of each question finds at a threshold; ``oracle`` takes the best at each."""
    found = []
    for one in read:
        value = one.values[:, k] if one else np.zeros(1)
        if one is None or name == "oracle":
            found.append(float(value.max()))
        else:
            found.append(one.candidates.worth(name, n, value))
    return found


def _write(
    path: Path, samples: Sequence[Sample], lines: Sequence[Line], read: Sequence[_Read | None], main: str
) -> None:
    """A line for each question, in order: keys of the published file, the candidates, and who picks which."""

    def told(sample: Sample, line: Line, one: _Read | None) -> dict[str, Any]:
        picks: dict[str, int] = {}
        if one:
            everyone = np.ones((1, len(one.told)), dtype=bool)
            picks = {name: int(one.candidates.pick(name, everyone)[0])
                     for name in one.candidates.selectors() if name != "random"}  # fmt: skip
            picks["random"] = zlib.crc32(sample.id.encode(errors="surrogatepass")) % len(one.told)
        return {
            "id": sample.id, "filename": [Path(image).name for image in sample.images], "query": sample.question,
            "options": dict(sample.options), "answer": list(sample.references), "type": list(sample.types),
            "pred": one.told[picks[main]]["text"] if one else None, "picks": picks,
            "candidates": one.told if one else [], "error": line.error[0] if line.error else None,
        }  # fmt: skip

    write_lines(path, map(told, samples, lines, read))
