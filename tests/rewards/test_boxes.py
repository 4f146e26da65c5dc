"""Boxes in every form they are written in, and their best pairs; the fixtures, as they must be and as published."""

import json
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.rewards.boxes import GroundingCounts, box_hits, box_iou, match_boxes, parse_boxes
from src.rewards.published import published_boxes, published_grounding

FIXTURES = Path("tests/fixtures/metrics")
BOXES = json.loads((FIXTURES / "boxes.json").read_text())["cases"]
GROUNDING = json.loads((FIXTURES / "grounding.json").read_text())
RECORDS = {record["id"]: record for record in GROUNDING["records"]}


@pytest.mark.parametrize("case", BOXES, ids=lambda case: case["id"])
def test_every_text(case):
    found = parse_boxes(case["text"], case["family"], (case["width"], case["height"]), case["bound"])
    assert found == [pytest.approx(box, abs=1e-6) for box in map(tuple, case["correct"]["boxes"])]
    assert (not found) == case["correct"]["unparsed"]


@pytest.mark.parametrize("case", BOXES, ids=lambda case: case["id"])
def test_what_the_published_extractors_find(case):
    wanted = case["published"]
    if error := wanted.get("error"):
        with pytest.raises(ValueError if error == "ValueError" else TypeError):
            published_boxes(case["text"], case["family"])
    else:
        assert published_boxes(case["text"], case["family"]) == wanted["boxes"]


@pytest.mark.parametrize("record", RECORDS.values(), ids=lambda record: record["id"])
def test_every_record(record):
    pairs = match_boxes(record["true"], record["pred"])
    assert len(pairs) == record["correct"]["hits"]
    if record["correct"]["pairs"] is not None:
        assert [[row, column] for row, column, _ in pairs] == record["correct"]["pairs"]


@pytest.mark.parametrize("group", GROUNDING["sets"], ids=lambda group: group["name"])
def test_every_set(group):
    """Known defects 8 to 12: misses, order, classes of size and non-square images count as they should."""
    records = [(RECORDS[id_]["true"], RECORDS[id_]["pred"]) for id_ in group["ids"]]
    total = GroundingCounts.total(GroundingCounts.of(true, predicted) for true, predicted in records)
    assert rounded(total.summary()) == group["correct"]
    for kind, empty in (("extractor_returns_none", None), ("extractor_returns_empty_list", [])):
        wanted = group["published"][kind]
        said = [(true, predicted or empty) for true, predicted in records]
        if "error" in wanted:
            with pytest.raises(ValueError, match="no pair"):
                published_grounding(said)
        else:
            assert rounded(published_grounding(said)) == wanted


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return round(value, 9) if isinstance(value, float) else value


def test_boxes_in_every_form_of_qwen():
    wanted = [(1.0, 2.0, 30.0, 40.0)]
    for text in (
        "<|box_start|>(1,2),(30,40)<|box_end|>",
        "(1, 2), (30, 40)",
        "[1,2,30,40]",
        "[[1, 2, 30, 40]]",
        '{"bbox_2d": [1, 2, 30, 40], "label": "ship"}',
        "(30,40),(1,2)",
    ):
        assert parse_boxes(text) == wanted, text
    assert parse_boxes("[a, b, c, d] (1,2) [1,2,3]") == []
    assert parse_boxes("[" + "1" + " " * 100_000 + "2 3 4]") == [(1, 2, 3, 4)]  # and in no time
    assert parse_boxes(None) == []


def test_overlap():
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_a_true_box_without_area_is_refused():
    with pytest.raises(ValueError, match="no area"):
        GroundingCounts.of([(1, 1, 1, 5)], [])


boxes = st.lists(st.tuples(*[st.integers(0, 4)] * 2).map(lambda c: (c[0], c[1], c[0] + 3, c[1] + 3)), max_size=4)


@given(boxes, boxes)
def test_pairs_are_the_best_that_any_matching_gives(true, predicted):
    blank = [None] * len(true)

    def worth(order):
        ious = [box_iou(one, two) for one, two in zip(order, true, strict=False) if one is not None]
        return sum(iou >= 0.3 for iou in ious), sum(iou for iou in ious if iou >= 0.3)

    most, total = max(worth(order) for order in permutations([*predicted, *blank], len(true)))
    pairs = match_boxes(true, predicted, 0.3)
    assert len(pairs) == most
    assert sum(iou for *_, iou in pairs) == pytest.approx(total)
    assert len({row for row, *_ in pairs}) == len({column for _, column, _ in pairs}) == most
    assert box_hits(true, true) == len(true)
