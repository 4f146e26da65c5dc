"""Answers in their plain form, and boxes in every form they are written in."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.rewards.answers import box_hits, box_iou, final_answer, normalise_answer, parse_boxes, same_answer


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\nYes!", "yes"),
        ("The Airport.", "airport"),
        ("an  oil\tdepot", "oil depot"),
        ("Three", "3"),
        ("twenty-one", "20 1"),
        ("1,024", "1024"),
        ("0.75", "0.75"),
        ("-5 m", "-5 m"),
        ("(B)", "b"),
        ("left of", "left of"),
        ("...", ""),
        ("A.", "a"),
    ],
)
def test_plain_form(text, plain):
    assert normalise_answer(text) == plain
    assert normalise_answer(plain) == plain


def test_an_answer_is_right_only_as_a_whole():
    for wrong in ("", "e", "ye", "...", "yes and no", "0.5"):
        assert not same_answer(wrong, ["yes", "0.75"])
    assert not same_answer("1", ["12"])
    assert not same_answer("", [""])
    assert same_answer("<think>it is not a lake</think> <answer>\nTwo\n</answer>", ["2"])


def test_the_answer_is_what_stands_after_the_reasoning():
    assert final_answer("plain") == "plain"
    assert final_answer("<think>a</think>b") == "b"
    assert final_answer("<think>a <answer>x</answer></think><answer>b</answer> c") == "b"
    assert final_answer("<answer>cut off") == "cut off"


def test_boxes_in_every_form():
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
    assert parse_boxes("(1,2),(3,4)(0.5,6),(7,8)") == [(1, 2, 3, 4), (0.5, 6, 7, 8)]


def test_overlap():
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


boxes = st.lists(st.tuples(*[st.integers(0, 4)] * 2).map(lambda c: (c[0], c[1], c[0] + 3, c[1] + 3)), max_size=4)


@given(boxes, boxes)
def test_hits_are_the_most_that_any_pairing_gives(predicted, true):
    blank = [None] * len(true)
    best = max(
        sum(one is not None and box_iou(one, two) >= 0.3 for one, two in zip(order, true, strict=False))
        for order in permutations([*predicted, *blank], len(true))
    )
    assert box_hits(predicted, true, 0.3) == best
    assert box_hits(true, true) == len(true)
