"""Rewards of responses: every row of the fixtures, as it must be and as published, and what has none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.errors import JobError, RecordError
from src.rewards.rewards import Reward, RewardResult, RewardRow

ROWS = json.loads(Path("tests/fixtures/metrics/rewards.json").read_text())["rows"]
GOOD = "<think>two clues</think><answer>{}</answer>"


def computed(row, compat=None):
    scores = row.get("scores")
    bounds = row.get("bounds")
    bounds = (bounds["reference"], bounds["answer"]) if bounds else None
    given = RewardRow(
        kind=row["reward_type"], response=row["response"], reference=row["reference"], question="q", bounds=bounds
    )

    def scorer(items):
        assert [(question, texts[1]) for question, _, texts in items] == [("q", row["reference"])]
        if scores is None:
            raise ConnectionError("server is away")
        return [[scores["answer"], scores["reference"]]]

    return Reward(row["format_weight"], scorer, compat)([given])[0]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_every_row(row):
    """Known defects 14 to 17, 19, 20, 41, 42, 56."""
    result, wanted = computed(row), row["correct"]
    if "error" in wanted:
        assert isinstance(result, RecordError)
        assert result.kind == wanted["error"]
    else:
        assert vars(result) == pytest.approx(wanted, abs=1e-9)
        assert list(result.parts()) == ["overall", "format", "accuracy", "unparsed"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_what_the_published_function_returned(row):
    result, wanted = computed(row, "published"), row["published"]
    if "error" in wanted:
        assert isinstance(result, RecordError)
    else:
        kept = [wanted["overall"], *[v for k, v in wanted.items() if k.startswith("format")]]
        kept += [v for k, v in wanted.items() if k.startswith("accuracy")]
        assert [result.overall, result.format, result.accuracy] == pytest.approx(kept, abs=1e-9)


def test_scores_are_asked_for_once_and_only_where_they_count():
    asked = []

    def scorer(items):
        asked.append(items)
        return [[1.0, 0.0], TimeoutError("slow")]

    rows = [
        RewardRow(kind="em", response=GOOD.format("yes"), reference="yes"),
        RewardRow(kind="open_ended", response=GOOD.format(" a port "), reference="piers", question="q", images=("i",)),
        RewardRow(kind="open_ended", response="no format", reference="piers"),
        RewardRow(kind="open_ended", response=GOOD.format("sea"), reference="piers"),
    ]
    results = Reward(scorer=scorer)(rows)
    assert asked == [[("q", ("i",), ["a port", "piers"]), ("", (), ["sea", "piers"])]]
    assert results[0] == RewardResult(1.0, 1.0, 1.0, unparsed=False)
    assert results[1].accuracy == pytest.approx(0.731058579)
    assert results[2] == RewardResult(0.0, 0.0, 0.0, unparsed=False)
    assert results[3].kind == "no_score"
    assert "TimeoutError: slow" in str(results[3])


def test_what_cannot_be_computed_is_an_error_and_never_zero():
    row = RewardRow(kind="open_ended", response=GOOD.format("sea"), reference="piers")
    for reward in (Reward(), Reward(scorer=lambda items: [[float("nan"), 1.0]])):
        (result,) = reward([row])
        assert isinstance(result, RecordError)
        assert result.kind == "no_score"
    assert Reward()([]) == []


def test_a_scorer_that_answers_nothing_is_lost_and_one_that_answers_something_is_not():
    rows = [RewardRow(kind="open_ended", response=GOOD.format(text), reference="piers") for text in ("sea", "port")]
    some = Reward(scorer=lambda _: [JobError("busy"), [1.0, 0.0]])
    assert [type(one) for one in some(rows)] == [RecordError, RewardResult]
    assert some.lost is None
    refused = Reward(scorer=lambda _: [RecordError("too_large", "picture")] * 2)
    assert all(isinstance(one, RecordError) for one in refused(rows))
    assert refused.lost is None, "rows were refused by a scorer that is there"

    def gone(items):
        raise JobError("no server")

    for scorer in (gone, lambda items: [JobError("no server")] * len(items)):
        lost = Reward(scorer=scorer)
        assert all("no server" in str(one) for one in lost(rows))
        assert str(lost.lost) == "no server"


def test_wrong_settings_are_refused_by_name():
    for wrong in ({"format_weight": 1.5}, {"compat": "old"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Reward(**wrong)


@given(st.text(max_size=60), st.sampled_from(["em", "iou", "math"]), st.sampled_from(["yes", "[1,2,3,4]", "12"]))
def test_rewards_stay_in_their_range(answer, kind, reference):
    (result,) = Reward()([RewardRow(kind=kind, response=GOOD.format(answer), reference=reference)])
    if isinstance(result, RewardResult):
        assert all(0 <= value <= 1 for value in result.parts().values())


def test_rewards_need_neither_torch_nor_transformers():
    code = "import sys, src.rewards.rewards; print([m for m in ('torch', 'transformers', 'verl') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
