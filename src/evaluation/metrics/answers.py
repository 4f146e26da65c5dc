"""Accuracy of short answers, with what could not be read counted apart, and counting errors."""

from collections.abc import Sequence
from typing import Any

from src.evaluation.metrics.base import Scored, in_units, means_of_groups, ratio
from src.evaluation.tasks import Sample, Task
from src.rewards.answers import Judgement, answer_kind, judge, normalise_answer, read_count, squash_answer
from src.rewards.published import published_judge


def judged(task: Task, sample: Sample, text: str | None) -> Judgement:
    """What is read in an answer, and whether it is one of the right ones."""
    kind = _kind(task, sample)
    found = [judge(kind, text, reference, sample.options or None) for reference in sample.references]
    return next((one for one in found if one.right), found[0] if found else judge(kind, None, ""))


def _kind(task: Task, sample: Sample) -> str:
    return answer_kind(sample.reference) if task.answer == "auto" else task.answer


def score_answers(
    task: Task, samples: Sequence[Sample], texts: Sequence[str | None], published: bool = False
) -> Scored:
    """Score the answers of a classification, question or choice task.

    Args:
        texts: of each sample; None where there is none.
        published: also the published rule, under which a part of the right answer is right.

    Returns:
        Metrics ``accuracy``, ``unparsed``; ``mean_per_class_recall`` of classifications, ``mean_per_type`` where
        questions have types, ``count_error`` (mean absolute error, over the answers in which a number was read)
        where they ask for counts; ``accuracy_published``. A row has ``read``, ``right``, ``unparsed``.
    """
    rows: list[dict[str, Any]] = []
    errors: list[int] = []
    for sample, text in zip(samples, texts, strict=True):
        kind, best = _kind(task, sample), judged(task, sample, text)
        row = {"read": best.answer, "right": best.right, "unparsed": best.unparsed}
        if published:
            row["right_published"], row["cleaned_published"] = published_judge(kind, text, sample.reference)
        rows.append(row)
        wanted = read_count(sample.reference) if kind == "count" else None
        if wanted is not None and isinstance(best.answer, int):
            errors.append(abs(best.answer - wanted))
    right = [row["right"] for row in rows]
    metrics = {"accuracy": ratio(right), "unparsed": ratio([row["unparsed"] for row in rows])}
    if published:
        metrics["accuracy_published"] = ratio([row["right_published"] for row in rows])
    counts = {"right": sum(right), "unparsed": sum(row["unparsed"] for row in rows)}
    details = {}
    if task.group == "classification":
        names = {squash_answer(reference): normalise_answer(reference) for s in samples for reference in s.references}
        counts["out_of_vocabulary"] = sum(row["read"] is not None and row["read"] not in names for row in rows)
        classes = [[names[squash_answer(sample.reference)]] if sample.references else [] for sample in samples]
        metrics["mean_per_class_recall"], details["classes"] = means_of_groups(right, classes)
    elif any(sample.types for sample in samples):
        types = [sorted({task.types.get(one, one) for one in sample.types}) for sample in samples]
        metrics["mean_per_type"], details["types"] = means_of_groups(right, types)
    if task.answer == "count" or errors:
        metrics["count_error"] = in_units(ratio(errors), "things")
    return Scored(metrics, counts, details, rows)
