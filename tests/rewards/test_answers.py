"""Answers in their plain form, read by kind; every case of the fixtures, as it must be and as published."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.rewards.answers import (
    answer_kind,
    final_answer,
    judge,
    normalise_answer,
    read_count,
    same_answer,
    squash_answer,
)
from src.rewards.published import published_judge

CASES = json.loads(Path("tests/fixtures/metrics/answers.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_every_case(case):
    verdict = judge(case["kind"], case["raw"], case["reference"], case.get("options"))
    assert vars(verdict) == case["correct"]
    right, cleaned = published_judge(case["kind"], case["raw"], case["reference"])
    assert {"right": right, "cleaned": cleaned} == case["published"]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\nYes!", "yes"),
        ("The Airport.", "airport"),
        ("an  oil\tdepot", "oil depot"),
        ("0.75", "0.75"),
        ("My final answer is: the 'harbour'.", "harbour"),
        ("answers", "answers"),
        ("optional", "optional"),
        ("...", ""),
        ("Ａ\u200birport", "airport"),
    ],
)
def test_plain_form(text, plain):
    assert normalise_answer(text) == plain


@given(st.text(alphabet=" aAtheTHE.,:'\"-_answeri*\n“3", max_size=30))
def test_the_plain_form_is_final(text):
    assert normalise_answer(normalise_answer(text)) == normalise_answer(text)
    assert " " not in squash_answer(text)


def test_an_answer_is_right_only_as_a_whole():
    """Known defects 6 and 7: a part of the reference is not the reference; line breaks and marks do not matter."""
    for wrong in ("", "e", "ye", "...", "yes and no", "0.5"):
        assert not same_answer(wrong, ["yes", "0.75"])
    assert not same_answer("1", ["12"])
    assert not same_answer("", [""])
    assert same_answer("<think>it is not a lake</think> <answer>\nTwo\n</answer>", ["2"])
    assert same_answer("left of", ["right of", "left of"])


def test_the_answer_is_what_stands_after_the_reasoning():
    assert final_answer("plain") == "plain"
    assert final_answer(None) == ""
    assert final_answer("<think>a</think>b") == "b"
    assert final_answer("<think>a <answer>x</answer></think><answer>b</answer> c") == "b"
    assert final_answer("<answer>cut off") == "cut off"
    assert final_answer("<think>cut off") == ""


def test_the_reference_tells_the_kind():
    kinds = {"Yes": "yesno", "urban": "rural_urban", "12": "count", "seven": "count", "B": "choice"}
    kinds |= {"B. blue": "choice", "Beach": "cls", "a pier": "cls", "2.5": "cls"}
    assert {text: answer_kind(text) for text in kinds} == kinds


def test_counts():
    assert [read_count(text) for text in ("two", "2 or three", "at least 2", "1,024", "1,02", "")] == [
        *(2, None, None),
        *(1024, None, None),
    ]


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"bleu.*cls, yesno"):
        judge("bleu", "a", "b")
