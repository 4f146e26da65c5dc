"""Best of N: picks and curves of the fixture, and runs that are killed, judged twice, or given odd candidates."""

import json
from math import comb
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from python_script.evaluation import lhrs_bench_bon, vg_bon
from src.curation.scorer import Scorer
from src.errors import JobError
from src.evaluation import bon_run
from src.evaluation.adapters import Adapter
from src.evaluation.adapters.families import FAMILIES
from src.evaluation.backends.base import Backend, Options, Text
from src.evaluation.backends.later import LaterBackend
from src.evaluation.judges import part_of
from src.evaluation.selectors import Candidates, same_boxes, same_read, sizes_up_to, subsets
from src.rewards.answers import judge

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "metrics" / "bon.json").read_text())
NAMES = {"first": "first", "majority": "majority_voting", "score": "j", "score_weighted_vote": "weighted_j"}
NAMES |= {"oracle": "oracle"}


def candidates_of(question: dict) -> Candidates:
    found = [judge(question["kind"], text, question["reference"], question.get("options"))
             for text in question["candidates"]]  # fmt: skip
    assert [one.answer for one in found] == question["read"]
    right = np.array([float(one.right) for one in found])
    return Candidates(right, same_read(question["read"]), {"j": np.array(question["scores"])})


@pytest.mark.parametrize("question", FIXTURE["questions"], ids=lambda question: question["id"])
def test_picks_and_curves_of_the_fixture(question):
    candidates = candidates_of(question)
    for name, pick in question["picks"].items():
        assert candidates.pick(NAMES[name], subsets(8, 8)).tolist() == [pick["index"]], name
    for name, curve in question["curve"].items():
        for size, (right, of) in curve.items():
            assert candidates.worth(NAMES[name], int(size)) == pytest.approx(right / of, abs=1e-9)


def test_drawn_subsets_are_unbiased_and_the_random_pick_is_the_mean():
    assert sizes_up_to(1) == [1]
    assert subsets(64, 4).shape == (2000, 64)
    assert set(subsets(64, 4).sum(axis=1)) == {4}
    value = (np.arange(64) % 4 == 0).astype(float)
    many = Candidates(value, same_read([int(one) for one in value]), {"j": np.arange(64.0)})
    assert many.worth("random", 4) == 0.25
    assert many.worth("oracle", 4) == pytest.approx(1 - 0.75**4, abs=0.05)
    exact = sum(comb(63 - k, 7) for k in range(0, 57, 4)) / comb(64, 8)
    assert many.worth("first", 8) == pytest.approx(exact, abs=0.04)
    alike = Candidates(np.ones(3), same_read(["a"] * 3), {"j": np.full(3, np.nan)})
    assert {name: alike.worth(name, 2) for name in alike.selectors()} == dict.fromkeys(alike.selectors(), 1.0)


def test_boxes_are_voted_on_by_overlap_and_unreadable_ones_never_win():
    boxes = [[], [(50, 50, 60, 60)], [(0, 0, 10, 10)], [(0, 1, 10, 11)], [(1, 0, 11, 10)]]
    scores = np.array([9.0, 700.0, 1.0, 2.0, np.nan])
    candidates = Candidates(np.zeros(5), same_boxes(boxes), {"j": scores})
    everyone = subsets(5, 5)
    assert candidates.pick("majority_voting", everyone) == [2]
    assert candidates.pick("weighted_j", everyone) == [1]
    assert candidates.pick("j", everyone) == [1]
    nothing = Candidates(np.zeros(2), same_boxes([[], []]), {"j": np.array([-1e4, -2e4])})
    assert [int(nothing.pick(name, subsets(2, 2))[0]) for name in ("majority_voting", "weighted_j")] == [0, 0]


def test_what_is_scored_of_a_reasoning_answer():
    """Defect 79: a candidate without its answer tag stopped the run."""
    text = "<think>two</think><answer>\nB\n</answer>"
    assert part_of(text, "answer") == "B"
    assert part_of(text, "response") == text
    assert part_of("<think>cut off", "answer") == ""


class Stopped(BaseException):
    """As a kill would."""


class Said(Backend):
    """Draws from lists by question; stops after so many questions."""

    def __init__(self, root: Path, table: dict[str, list[str]], stop_after: int = 10**9):
        self.options = Options(progress=False, window=1, image_root=root, workers=1)
        self.table, self.left, self.asked = table, stop_after, []

    def answer(self, prompts, done):
        made = []
        for prompt in prompts:
            if not self.left:
                raise Stopped
            self.left -= 1
            self.asked.append(prompt.messages[-1]["content"][-1]["text"])
            said = next(texts for key, texts in self.table.items() if key in self.asked[-1])
            made.append([Text(said[k % len(said)], "stop") for k in range(prompt.sampling.draws)])
        done(len(made))
        return made


@pytest.fixture
def program(tmp_path, tiny_scorer, monkeypatch):
    """Runs a program on a folder with a table of answers; the scorer counts what it scores."""
    (tmp_path / "images").mkdir()
    (tmp_path / "model").mkdir()
    for number in range(4):
        Image.new("RGB", (56, 56), (60 * number, 90, 20)).save(tmp_path / "images" / f"{number}.png")
    scored: list[str] = []

    def rooted(path, device, image_root):
        scorer = tiny_scorer.rooted(image_root)
        stream = scorer.stream
        scorer.stream = lambda windows: stream(scored.extend(p["text"] for p in w) or w for w in windows)
        return scorer

    monkeypatch.setattr(Scorer, "from_pretrained", rooted)

    def run(module, records: list[dict], table: dict, *flags: str, stop_after: int = 10**9) -> tuple[dict, list]:
        (tmp_path / "q.json").write_text(json.dumps(records))
        backend = Said(tmp_path / "images", table, stop_after)
        adapter = Adapter(LaterBackend(lambda: backend), FAMILIES["qwen2_vl"])
        monkeypatch.setattr(bon_run, "get_adapter", lambda *given, **options: adapter)
        monkeypatch.setattr(bon_run, "save_page", lambda page, path: path.write_text("page"))
        module.main([
            "--model_path", str(tmp_path / "model"), "--eval_image_root", str(tmp_path / "images"),
            "--eval_target_file", str(tmp_path / "q.json"), "--output_path", str(tmp_path / "out"), *flags,
        ])  # fmt: skip
        result = next((tmp_path / "out").glob("*.json"))
        lines = [json.loads(line) for line in result.with_suffix(".jsonl").read_text().splitlines()]
        return json.loads(result.read_text()), lines, backend.asked

    run.scored = scored
    return run


RECORDS = [
    {"image": "0.png", "question": "zero?", "answer": "A", "options": ["red", "blue"], "type": ["1"]},
    {"image": "1.png", "image_path": "ignored", "question": "one?", "answer": "B", "options": ["red", "blue"],
     "type": ["1", "2"]},
    {"image": "2.png", "question": "two?", "answer": "A", "options": ["red", "blue"], "type": ["2"]},
    {"image": "none.png", "question": "three?", "answer": "A", "options": ["red", "blue"], "type": ["2"]},
]  # fmt: skip
TABLE = {"zero?": ["B", "A", "A", "A."], "one?": ["B"], "two?": ["", "<think>cut", "A", "x <|image_pad|>"]}


def test_a_run_from_candidates_to_numbers(program):
    result, lines, _ = program(lhrs_bench_bon, RECORDS, TABLE, "--sample_num", "4")
    metrics = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert metrics["first"] == 0.25
    assert metrics["random"] == (0.75 + 1 + 0.25) / 4
    assert metrics["majority_voting"] == metrics["oracle"] == 0.75
    assert {metric["n"] for metric in result["metrics"].values()} == {4}
    assert result["details"]["curve"]["oracle"]["1"]["value"] == metrics["random"]
    assert list(result["details"]["types"]["first"]) == ["color", "identity"]
    assert result["counts"]["errors"] == {"missing_image": 1}
    assert result["counts"]["unscored"] == {"Qwen2Reward": 3}
    assert [len(line["candidates"]) for line in lines] == [4, 4, 4, 0]
    assert sorted(program.scored) == ["", "A", "A", "A.", "B", "B", "x <|image_pad|>"]  # each answer once
    shown = [row["scores"]["Qwen2Reward"] for row in lines[0]["candidates"]]
    assert len({round(score, 6) for score in shown}) == 3  # defect 1: not all the same
    assert shown[1] == shown[2]
    best = lines[0]["picks"]["Qwen2Reward"]
    assert shown[best] == max(shown)
    assert lines[0]["pred"] == lines[0]["candidates"][best]["text"]


def test_a_killed_run_draws_and_scores_only_what_is_missing(program, tmp_path):
    whole = program(lhrs_bench_bon, RECORDS, TABLE, "--sample_num", "4")
    files = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json*")}
    (scores,) = (tmp_path / "out" / "scores").rglob("*.jsonl")
    head = scores.read_bytes().splitlines(keepends=True)
    scores.write_bytes(b"".join(head[:3]) + head[3][:9])  # as a kill leaves it
    (part,) = (tmp_path / "out" / "answers").rglob("part-*.jsonl")
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[:1]))
    program.scored.clear()
    again = program(lhrs_bench_bon, RECORDS, TABLE, "--sample_num", "4")
    assert again[:2] == whole[:2]
    assert len(again[2]) == 2
    assert len(program.scored) == 5
    assert files == {path: path.read_bytes() for path in files}
    with pytest.raises(Stopped):
        program(lhrs_bench_bon, RECORDS, TABLE, "--sample_num", "2", stop_after=1)
    assert len(program(lhrs_bench_bon, RECORDS, TABLE, "--sample_num", "2")[2]) == 2


def test_one_candidate_and_two_judges(program, tmp_path):
    result, *_ = program(
        lhrs_bench_bon, RECORDS[:2], TABLE, "--sample_num", "1", "--reward_model_type", "majority_voting"
    )
    assert list(result["metrics"]) == ["first", "random", "majority_voting", "oracle"]
    assert {metric["value"] for metric in result["metrics"].values()} == {0.5}
    assert program.scored == []
    program(lhrs_bench_bon, RECORDS[:2], TABLE, "--sample_num", "1", "--reward_name", "one")
    result, lines, asked = program(lhrs_bench_bon, RECORDS[:2], TABLE, "--sample_num", "1", "--reward_name", "two",
                                   "--score_part", "response")  # fmt: skip
    assert {"one", "two", "weighted_one", "weighted_two"} < set(result["metrics"])
    assert set(lines[0]["candidates"][0]["scores"]) == {"one", "two"}
    assert asked == []


def test_grounding(program):
    records = [{"image": f"{k}.png", "question": f"box {k}", "answer": "[0, 0, 28, 28]", "size": [56, 56]}
               for k in range(3)]  # fmt: skip
    table = {
        "box 0": ["(0,0),(500,500)", "(500,500),(1000,1000)", "(0,0),(480,480)"],
        "box 1": ["nothing", "[0,0", "(0,0),(1000,1000)"],
        "box 2": ["(0,0),(500,420)"],
    }
    result, lines, _ = program(vg_bon, records, table, "--sample_num", "3", "--reward_name", "judge")
    assert result["metrics"]["majority_voting"]["value"] == pytest.approx(2 / 3)
    assert result["metrics"]["random"]["value"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    iou = result["details"]["iou"]
    assert iou["oracle"]["0.9"]["value"] == pytest.approx(1 / 3)
    assert iou["first"]["0.8"]["value"] == pytest.approx(2 / 3)
    assert result["counts"]["unparsed"] == 2
    assert lines[1]["picks"]["majority_voting"] == 2


def test_clip_judges_by_image_and_answer(program, tiny, tmp_path):
    result, lines, _ = program(lhrs_bench_bon, RECORDS[:3], TABLE, "--sample_num", "4", "--reward_model_type", "clip",
                               "--reward_model_path", str(tiny))  # fmt: skip
    assert "weighted_clip" in result["metrics"]
    assert result["counts"]["unscored"] == {"clip": 2}
    scores = [row["scores"]["clip"] for row in lines[0]["candidates"]]
    assert scores[1] == scores[2] != scores[0]


def test_what_cannot_be_is_refused(program, tmp_path):
    for flags in (["--task", "rs_vg"], ["--task", "none"], ["--limit", "0"], ["--sample_num", "0"]):
        with pytest.raises((SystemExit, JobError)):
            program(lhrs_bench_bon, RECORDS, TABLE, *flags)
