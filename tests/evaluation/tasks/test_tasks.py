"""Annotations are read as questions: the published form with its oddities, VRSBench's and ours; bad records by name."""

import json
from pathlib import Path

import pytest

from src.errors import JobError
from src.evaluation.tasks import GROUPS, PROMPTS, known_tasks, pick_tasks, read_samples
from src.rewards.answers import ANSWER_KINDS
from src.rewards.boxes import BOX_FORMATS

PUBLISHED = {
    "cls_aid", "cls_METER_ML", "cls_NWPU_RESISC45", "cls_SIRI", "cls_WHU_RS19", "vqa_HR-comp", "vqa_HR-pre",
    "vqa_HR-counting", "vqa_LR-comp", "vqa_LR-pre", "vqa_LR-rural", "vqa_LR-counting", "rs_vg", "lhrs_bench",
}  # fmt: skip


def written(folder: Path, records: object, name: str = "cls_AID.json") -> Path:
    path = folder / name
    path.write_text(records if isinstance(records, str) else json.dumps(records))
    return path


def chat(question: str, answer: str, **keys: object) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": "x.jpg", "conversations": turns, **keys}


def test_tasks_are_whole():
    tasks = known_tasks()
    assert set(tasks) >= PUBLISHED
    assert len(PUBLISHED) == 14
    for name, task in tasks.items():
        assert task.name == name
        assert task.group in GROUPS
        assert task.prompt in PROMPTS
        assert task.boxes in BOX_FORMATS
        assert (task.answer in (*ANSWER_KINDS, "auto")) == (task.group not in ("grounding", "caption"))
    assert len({task.file for task in tasks.values()}) == len(tasks)


def test_the_published_form(tmp_path):
    """Defect 95: every pair of turns is a question, and no stray blank stays."""
    path = written(tmp_path, [
        chat("<image>\nWhich class?", "Airport", size=[600, 400], type=["1", "10"]),
        chat("a", "b", image_path="images/aid"),
        chat("a", "b", image_path="/elsewhere"),
        {"image": "y.jpg", "conversation": [{"value": "one?"}, {"value": 1}, {"value": "two?"}, {"value": "2"}]},
    ])  # fmt: skip
    first, second, third, fourth, fifth = read_samples(path)
    assert first.question == "Which class?"
    assert first.references == ("Airport",)
    assert first.images == (str(tmp_path / "cls_AID" / "x.jpg"),)
    assert first.size == (400, 600)  # defect 12: height comes first
    assert first.types == ("1", "10")
    assert second.images == (str(tmp_path / "images" / "aid" / "x.jpg"),)
    assert third.images == ("/elsewhere/x.jpg",)
    assert [s.question for s in (fourth, fifth)] == ["one?", "two?"]
    assert [s.id for s in (fourth, fifth)] == ["cls_AID.json:3", "cls_AID.json:3#1"]
    assert [s.index for s in read_samples(path, 2)] == [0, 1]


def test_a_type_that_is_text_is_one_type(tmp_path):
    """Defect 34: "10" was read as the types 1 and 0."""
    (sample,) = read_samples(written(tmp_path, [chat("a", "b", type="10")]))
    assert sample.types == ("10",)


def test_our_form_and_vrsbench(tmp_path):
    path = written(tmp_path, [
        {"id": 7, "images": ["p/1.png", "p/2.png"], "question": "<image>before <image>after?", "options": ["Yes", "No"],
         "answer": "A"},
        {"image_id": "P1.png", "question": "where?", "ground_truth": "{<1><2><3><4>}", "question_id": 3, "type": "x"},
        {"image": "a.png", "question": "Describe.", "references": ["one", "two"], "options": {"A": "x"}},
    ])  # fmt: skip
    ours, vrs, caption = read_samples(path)
    assert ours.images == (str(tmp_path / "p/1.png"), str(tmp_path / "p/2.png"))
    assert ours.asked("Pick one.") == "<image>before <image>after?\nA. Yes\nB. No\nPick one."
    assert (vrs.id, vrs.references, vrs.types) == ("3", ("{<1><2><3><4>}",), ("x",))
    assert vrs.images == (str(tmp_path / "cls_AID" / "P1.png"),)
    assert read_samples(path, images="Images_val")[1].images == (str(tmp_path / "Images_val" / "P1.png"),)
    assert caption.references == ("one", "two")


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ("text", "bad_record"),
        ({"conversations": [{"value": "a"}, {"value": "b"}]}, "missing_image"),
        ({"image": 5, "question": "a", "answer": "b"}, "bad_record"),
        ({"image": "x", "question": "a"}, "bad_record"),
        ({"image": "x", "question": {}, "answer": "b"}, "bad_record"),
        ({"image": "x", "conversations": [{"value": "a"}]}, "bad_record"),
        (chat("a", "b", size=[1]), "bad_record"),
        (chat("a", "b", size="x"), "bad_record"),
        (chat("a", "b", options=3), "bad_record"),
        (chat("a", "b\ud800"), "bad_record"),
    ],
)
def test_a_bad_record_is_one_error(tmp_path, record, kind):
    samples = read_samples(written(tmp_path, [chat("a", "b"), record, chat("c", "d")]))
    assert [sample.error and sample.error.kind for sample in samples] == [None, kind, None]
    assert "cls_AID.json:1" in str(samples[1].error)


@pytest.mark.parametrize("text", ["", "{}", "[1, 2", "[{]"])
def test_a_file_that_is_no_list_is_refused_by_name(tmp_path, text):
    with pytest.raises(JobError, match=r"cls_AID\.json"):
        read_samples(written(tmp_path, text))


def test_tasks_are_picked_by_name_or_by_what_is_there(tmp_path):
    with pytest.raises(JobError, match=r"unknown task 'cls_aid2'; did you mean cls_aid\? known: all, cls_aid"):
        pick_tasks(["cls_aid2"], tmp_path)
    with pytest.raises(JobError, match="no such folder"):
        pick_tasks(["all"], tmp_path / "none")
    with pytest.raises(JobError, match=r"none of the files cls_AID\.json"):
        pick_tasks(["all"], tmp_path)
    written(tmp_path, [], "LHRS-Bench.json")
    written(tmp_path, [])
    assert [task.name for task in pick_tasks(["all"], tmp_path)] == ["cls_aid", "lhrs_bench"]
    assert [task.name for task in pick_tasks(["lhrs_bench"], tmp_path)] == ["lhrs_bench"]
    with pytest.raises(JobError, match=r"rs_vg needs .*VG_DOIR_RSVG_test\.json"):
        pick_tasks(["cls_aid", "rs_vg"], tmp_path)
