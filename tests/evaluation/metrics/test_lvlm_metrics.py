"""Metrics of vision-language models: denominators, what is unparsed, groups, boxes, captions, and their intervals."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer

from src.evaluation.metrics import Grounded, score_answers, score_captions, score_grounding
from src.evaluation.metrics.base import means_of_groups, ratio
from src.evaluation.metrics.captions import NAMES, words
from src.evaluation.tasks import Sample, Task, known_tasks

FIXTURES = Path(__file__).parents[2] / "fixtures" / "metrics"


def task(answer: str, group: str = "vqa") -> Task:
    return Task("f.json", group, answer)


def samples(*references: str, types: tuple[tuple[str, ...], ...] = ()) -> list[Sample]:
    return [Sample(k, str(k), references=(text,), types=types[k] if types else ()) for k, text in enumerate(references)]


def value(scored, name: str):
    return scored.metrics[name]["value"]


def test_a_part_of_the_right_answer_is_not_right():
    """Defect 6: "", "...", "e" for "yes" and "1" for "12" were right."""
    scored = score_answers(task("yesno"), samples(*["yes"] * 4), ["", "...", "e", "yes"], published=True)
    assert value(scored, "accuracy") == 0.25
    assert value(scored, "unparsed") == 0.75
    assert scored.counts == {"right": 1, "unparsed": 3}
    assert value(scored, "accuracy_published") == 1.0
    counted = score_answers(task("count"), samples("12", "12", "3"), ["1", "12 ships", None])
    assert value(counted, "accuracy") == pytest.approx(1 / 3)
    assert counted.metrics["count_error"]["value"] == 5.5  # of the two in which a number was read
    assert counted.metrics["count_error"]["n"] == 2
    assert counted.metrics["count_error"]["unit"] == "things"


def test_answers_are_put_into_plain_form():
    """Defect 7: "\\nyes", "Yes!" and "rural area" for "rural" were wrong."""
    assert value(score_answers(task("yesno"), samples("yes", "yes"), ["\nyes", "Yes!"]), "accuracy") == 1
    assert value(score_answers(task("rural_urban"), samples("rural"), ["rural area"]), "accuracy") == 1


def test_classes_weigh_alike_in_their_mean_and_unknown_ones_are_wrong():
    classes = samples("airport", "airport", "airport", "dense residential")
    said = ["Airport.", "airport", "spaceport", "DenseResidential"]
    scored = score_answers(task("cls", "classification"), classes, said)
    assert value(scored, "accuracy") == 0.75
    assert value(scored, "mean_per_class_recall") == pytest.approx((2 / 3 + 1) / 2)
    assert scored.counts["out_of_vocabulary"] == 1
    assert scored.details["classes"]["airport"]["n"] == 3


def test_a_question_counts_in_each_of_its_types():
    """Defect 34: and a type unknown to the task is a type, not an error."""
    bench = known_tasks()["lhrs_bench"]
    asked = samples("B. red", "A. two", "C. far", types=(("2",), ("5", "11"), ("x",)))
    scored = score_answers(bench, asked, ["B", "A", "A"])
    shares = {name: metric["value"] for name, metric in scored.details["types"].items()}
    assert shares == {"color": 1, "quantity": 1, "reasoning": 1, "x": 0}
    assert value(scored, "mean_per_type") == 0.75
    assert value(scored, "accuracy") == pytest.approx(2 / 3)


def test_nothing_at_all_has_no_accuracy():
    """Defect 72: an empty set of results was divided by."""
    scored = score_answers(task("cls", "classification"), [], [], published=True)
    assert {metric["value"] for metric in scored.metrics.values()} == {None}
    assert {metric["value"] for metric in score_grounding([], published=True).metrics.values()} == {None}
    assert {metric["value"] for metric in score_captions([], []).metrics.values()} == {None}


def test_a_record_without_a_reference_is_wrong():
    scored = score_answers(task("auto"), [Sample(0, "0"), *samples("yes")], [None, "yes"], published=True)
    assert value(scored, "accuracy") == 0.5


BOX = (0.0, 0.0, 100.0, 100.0)
FAR = (200.0, 200.0, 300.0, 300.0)


def test_missing_boxes_stay_in_the_denominator():
    """Defects 8 (zip dropped them), 9 (an empty list too), 71 (no box at all stopped the run)."""
    scored = score_grounding([Grounded([BOX, FAR], [BOX], [BOX])], published=True)
    assert value(scored, "precision") == 0.5
    assert value(scored, "precision_published") == 1.0
    assert scored.counts["missing"] == 1
    scored = score_grounding([Grounded([BOX], [], []), Grounded([BOX], [BOX], [BOX])], published=True)
    assert value(scored, "precision") == 0.5
    assert value(scored, "precision_published") == 1.0
    assert value(scored, "unparsed") == 0.5
    scored = score_grounding([Grounded([BOX], [], [])], published=True)
    assert value(scored, "precision") == 0
    assert value(scored, "precision_published") is None


def test_boxes_are_matched_whatever_their_order_and_sized_each():
    """Defects 10 (pairs by position) and 11 (a small box after a large one was counted as large)."""
    small = (400.0, 400.0, 410.0, 410.0)
    scored = score_grounding([Grounded([BOX, small], [small, BOX])])
    assert value(scored, "precision") == 1
    assert scored.metrics["precision_S"]["n"] == 1
    assert scored.metrics["precision_L"]["n"] == 1
    assert scored.metrics["precision_M"]["value"] is None


@pytest.mark.skipif(not (FIXTURES / "grounding.json").exists(), reason="the fixture is not there")
def test_grounding_meets_the_fixture():
    content = json.loads((FIXTURES / "grounding.json").read_text())
    records = {record["id"]: record for record in content["records"]}
    for one in content["sets"]:
        boxes = [Grounded(records[name]["true"], records[name]["pred"]) for name in one["ids"]]
        scored, correct = score_grounding(boxes), one["correct"]
        for name in ("n_true", "n_pred", "hits", "missing", "surplus", "predictions_without_hit"):
            assert scored.counts[name] == correct[name], (one["name"], name)
        for threshold, expected in correct["curve"].items():
            name = "precision" if threshold == "0.5" else f"precision@{threshold}"
            assert value(scored, name) == pytest.approx(expected["precision"], abs=1e-8)
        for size, expected in correct["size"].items():
            assert value(scored, f"precision_{size}") == pytest.approx(expected["precision"], abs=1e-8)


def test_intervals_are_seeded_cover_the_value_and_know_small_groups():
    rng = np.random.default_rng(1)
    right = rng.random(400) < 0.3
    metric = ratio(right)
    assert metric == ratio(right)
    half = 1.96 * math.sqrt(metric["value"] * (1 - metric["value"]) / 400)
    assert metric["low"] == pytest.approx(metric["value"] - half, abs=0.01)
    assert metric["high"] == pytest.approx(metric["value"] + half, abs=0.01)
    mean, shares = means_of_groups([True] * 5, [["a"], ["b"], ["c"], [], ["a", "b"]])
    assert (mean["low"], mean["value"], mean["high"], mean["n"]) == (1, 1, 1, 4)
    assert shares["a"] == {"value": 1, "low": 1, "high": 1, "n": 2}
    # A group that a draw lacks does not count as wrong in it.
    assert ratio([1, 0, 0], [1, 0, 0])["low"] == 1


def test_captions_are_scored_as_the_library_scores_them():
    references = [["two ships in a harbour .", "Ships at a pier."], ["a green field with a road"], ["an airport"]]
    said = ["Two ships at a pier.", "<think>so</think><answer>a field with one road</answer>", None]
    scored = score_captions(references, said)
    assert [*scored.metrics] == [*NAMES]
    scorer = BleuScorer(n=4)
    for text, of in zip(("two ships at a pier", "a field with one road", ""), references, strict=True):
        scorer += (text, [" ".join(words(one)) for one in of])
    expected, _ = scorer.compute_score(option="closest")
    assert [value(scored, f"bleu{n}") for n in range(1, 5)] == pytest.approx(expected)
    assert [row["unparsed"] for row in scored.rows] == [False, False, True]
    assert scored.rows[2]["cider"] == scored.rows[2]["meteor_stem"] == scored.rows[2]["rouge_l"] == 0
    for name in NAMES:
        assert scored.metrics[name]["n"] == 3
        assert scored.metrics[name]["low"] <= value(scored, name) <= scored.metrics[name]["high"]
    perfect = score_captions(references[:2], ["two ships in a harbour", "a green field with a road"])
    assert value(perfect, "bleu4") == pytest.approx(1)
    assert value(perfect, "rouge_l") == pytest.approx(1)


def test_meteor_needs_no_dictionary_and_knows_stems():
    (row,) = score_captions([["two ships sailing"]], ["two ship sail"]).rows
    (other,) = score_captions([["two ships sailing"]], ["two boats drift"]).rows
    assert row["meteor_stem"] > 0.9 > other["meteor_stem"] > 0
