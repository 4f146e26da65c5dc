"""The tasks of vision-language models, from ``tasks.yaml``: what is asked, where it lies, how an answer is read."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from omegaconf import MISSING, OmegaConf

from src.errors import JobError
from src.evaluation.tasks.samples import Sample, read_samples, refuse_no_file

__all__ = ["GROUPS", "PROMPTS", "Sample", "Task", "known_tasks", "pick_tasks", "read_samples"]

GROUPS = ("classification", "vqa", "choice", "grounding", "caption")
PROMPTS = ("cls", "vqa", "grounding", "as_is")


@dataclass
class Task:
    """A task, as ``tasks.yaml`` has it.

    Attributes:
        file: annotations, below the data root.
        group: one of ``GROUPS``: the metrics, and the table of results that it is in.
        answer: kind of :func:`src.rewards.answers.judge`, or ``auto``: each reference decides; "" for boxes, captions.
        prompt: one of ``PROMPTS``: which sentence of the model's family goes around the question.
        instruction: a line behind the question.
        boxes: how true boxes are written, a key of :data:`src.rewards.boxes.BOX_FORMATS`.
        images: folder of the images below the data root, where records do not name one; "": named like the file;
            an absolute one: of all images, whatever records say.
        types: what the types of questions are called; others keep their names.
        name: of the task.
    """

    file: str = MISSING
    group: str = MISSING
    answer: str = ""
    prompt: str = "as_is"
    instruction: str = ""
    boxes: str = "ground_truth"
    images: str = ""
    types: dict[str, str] = field(default_factory=dict)
    name: str = ""


@cache
def known_tasks() -> dict[str, Task]:
    """All tasks by name, in the order of the file."""
    given = OmegaConf.load(Path(__file__).with_name("tasks.yaml"))
    merged = {
        str(name): OmegaConf.merge(OmegaConf.structured(Task), keys, {"name": name}) for name, keys in given.items()
    }
    return {name: OmegaConf.to_object(task) for name, task in merged.items()}  # type: ignore[misc]


def pick_tasks(names: Sequence[str], data_root: Path) -> list[Task]:
    """The tasks of these names; ``all``: those whose files are below the data root.

    Raises:
        JobError: an unknown name, no such file, or none at all.
    """
    known = known_tasks()
    if unknown := [name for name in names if name not in {*known, "all"}]:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise JobError(f"unknown task {unknown[0]!r}; {hint}known: all, {', '.join(known)}")
    if not data_root.is_dir():
        raise JobError(f"no such folder of data: {data_root}")
    if "all" in names:
        found = [task for task in known.values() if (data_root / task.file).is_file()]
        if not found:
            files = ", ".join(task.file for task in known.values())
            raise JobError(f"{data_root} has none of the files {files}")
        return found
    picked = [known[name] for name in dict.fromkeys(names)]
    for task in picked:
        refuse_no_file(data_root / task.file, task.name)
    return picked
