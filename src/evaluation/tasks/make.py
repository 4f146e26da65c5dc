"""Evaluation data in the form that :func:`src.evaluation.tasks.read_samples` reads: from made scenes, and of CHOICE."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from src.dataset.images import encoded_image, image_size
from src.dataset.instructions import KINDS, scene_turns
from src.dataset.rows import iter_rows
from src.dataset.scene_text import captions
from src.dataset.scenes import make_scene, png_bytes
from src.errors import JobError, RecordError
from src.rewards.boxes import parse_boxes

TASK_OF_KIND = {
    "scene": "scenes_cls",
    "yes_no": "scenes_yesno",
    "count": "scenes_count",
    "colour": "scenes_colour",
    "relation": "scenes_relation",
    "grounding": "scenes_vg",
    "caption": "scenes_caption",
}
_CHOICE_COLUMNS = ("image", "id", "task", "stem", "question", "options", "answer", "answer_quad")
Records = dict[str, list[dict[str, Any]]]


def scene_records(seeds: Iterable[int], folder: Path, size: int) -> Records:
    """A question of every kind about each scene, and one with options, by name of the file; pictures go to
    ``folder/scenes``.

    Args:
        size: side of the pictures in pixels.
    """
    images = folder / "scenes"
    images.mkdir(parents=True, exist_ok=True)
    made: Records = {TASK_OF_KIND[kind]: [] for kind in KINDS}
    for seed in seeds:
        scene = make_scene(seed, size=size)
        rng = np.random.Generator(np.random.PCG64([seed, 7]))
        name = f"{seed:08d}.png"
        (images / name).write_bytes(png_bytes(scene.image))
        width, height = scene.image.size
        for kind, question, answer in scene_turns(scene, rng):
            record = {"id": f"scene-{seed:08d}-{kind}", "image": name, "image_path": "scenes", "size": [height, width]}
            if kind == "caption":
                made[TASK_OF_KIND[kind]].append(
                    {
                        **record,
                        "question": question,
                        "references": [answer, *_others(answer, captions(scene.facts, rng))],
                    }
                )
                continue
            if kind == "grounding":  # thousandths of a side are finer than pixels of these pictures
                boxes = parse_boxes(answer, "qwen2_vl", (width, height))
                answer = ", ".join(str([round(side) for side in box]) for box in boxes)  # noqa: PLW2901
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            made[TASK_OF_KIND[kind]].append({**record, "conversations": turns})
    made["scenes_choice"] = _choices(made)
    return made


def _choices(made: Records) -> list[dict[str, Any]]:
    """One of each scene's questions, kinds in turn, with up to four options from the answers to other scenes."""
    kinds = [kind for kind in TASK_OF_KIND if kind not in ("grounding", "caption")]
    answers = {kind: sorted({_turns(record)[1] for record in made[TASK_OF_KIND[kind]]}) for kind in kinds}
    choices = []
    for number, records in enumerate(zip(*(made[TASK_OF_KIND[kind]] for kind in kinds), strict=True)):
        kind, record = kinds[number % len(kinds)], records[number % len(kinds)]
        question, answer = _turns(record)
        rng = np.random.default_rng([number, 11])
        others = [one for one in answers[kind] if one != answer]
        drawn = [answer, *(others[int(k)] for k in rng.permutation(len(others))[:3])]
        options = dict(zip(ascii_uppercase, (drawn[int(k)] for k in rng.permutation(len(drawn))), strict=False))
        letter = next(letter for letter, text in options.items() if text == answer)
        choices.append({**{key: record[key] for key in ("image", "image_path", "size")}, "id": f"{record['id']}-choice",
                        "type": [kind], "question": question, "options": options, "answer": letter})  # fmt: skip
    return choices


def _turns(record: dict[str, Any]) -> tuple[str, str]:
    asked, answered = record["conversations"]
    return asked["value"].removeprefix("<image>\n"), answered["value"]


def _others(answer: str, texts: Iterable[str]) -> Iterator[str]:
    return (text for text in dict.fromkeys(texts) if text != answer)


def choice_records(path: Path, folder: Path, left_out: Counter[str]) -> Records:
    """The multiple-choice and grounding questions of a CHOICE Parquet file; pictures go to ``folder/choice``.

    Args:
        left_out: counts the rows that are neither, by task, and those that cannot be used, by kind of error.

    Raises:
        JobError: no such file, or one that is not of this form.
    """
    if not path.is_file() or path.suffix != ".parquet":
        raise JobError(f"{path} is not a Parquet file of CHOICE")
    (folder / "choice").mkdir(parents=True, exist_ok=True)
    made: Records = {"choice": [], "choice_vg": []}
    for number, row in enumerate(iter_rows(path, _CHOICE_COLUMNS)):
        try:
            if isinstance(row, RecordError):
                raise row
            if lacking := {"image", "task", "answer"} - row.keys():
                raise JobError(f"{path} is not of CHOICE: it has no column {min(lacking)}")
            content, kind = encoded_image(row["image"])
            name = f"{number:05d}.{kind.lower()}"
            record = {"id": str(row.get("id") or number), "image": name, "image_path": "choice", "type": [row["task"]],
                      "question": row.get("stem") or row.get("question") or ""}  # fmt: skip
            options = [str(option) for option in row.get("options") or []]
            if len(options) > 1 and row["answer"] in ascii_uppercase[: len(options)]:
                letters = dict(zip(ascii_uppercase, options, strict=False))
                made["choice"].append({**record, "options": letters, "answer": row["answer"]})
            elif row.get("answer_quad"):
                made["choice_vg"].append({**record, **_box_around(row, image_size(row["image"]))})
            else:
                left_out[f"task {row['task']}"] += 1
                continue
            (folder / "choice" / name).write_bytes(content)
        except RecordError as error:
            left_out[error.kind] += 1
    return made


def _box_around(row: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The upright box around four corners in 0..1, in pixels."""
    width, height = size
    x, y = zip(*row["answer_quad"], strict=True)
    box = [round(min(x) * width), round(min(y) * height), round(max(x) * width), round(max(y) * height)]
    return {"answer": str(box), "size": [height, width]}


def write_records(records: Records, folder: Path) -> dict[str, int]:
    """Write a JSON file for each task that has questions; how many each has."""
    for name, rows in records.items():
        if rows:
            text = json.dumps(rows, indent=1, ensure_ascii=False)
            (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return {name: len(rows) for name, rows in records.items() if rows}
