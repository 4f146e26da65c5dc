"""Pictures of reinforcement learning: what is in them, of one run and of several."""

import json

import pytest

from python_script.evaluation import reward_curves as program
from src.evaluation.grpo_page import ALL, held_out_change, reward_curves, rewarded


def history(shift: float) -> list[dict[str, float]]:
    lines = [
        {"step": step, "reward": 0.1 * step + shift, "reward_em": 0.2, "reward_std": 9.0, "format": 0.5, "kl": 3.0}
        for step in (1, 2, 3)
    ]
    return [*lines, {"step": 3, "eval_accuracy": 0.4}]


METRICS = {
    "before_accuracy": 0.3, "eval_accuracy": 0.5, "before_accuracy_count": 0.2, "eval_accuracy_count": 0.6,
    "before_reward": 0.5, "eval_reward": 0.6,
    "before_format": 0.7, "eval_format": 1.0, "first_reward": 0.1, "eval_accuracy_caption": 0.0,
}  # fmt: skip


def test_lines_of_several_runs_are_means_and_their_band_goes_from_lowest_to_highest():
    chart = reward_curves({"a": history(0.0), "b": history(0.2)}).to_dict()
    points = chart["layer"][0]["data"]["values"] if "data" in chart["layer"][0] else chart["data"]["values"]
    assert {point["what"] for point in points} == {ALL, "em", "format"}
    third = next(point for point in points if point["what"] == ALL and point["step"] == 3)
    assert (third["low"], third["value"], third["high"]) == pytest.approx((0.3, 0.4, 0.5))
    assert "2 runs" in json.dumps(chart)
    assert "layer" not in reward_curves({"a": history(0.0)}).to_dict()


def test_a_run_is_told_as_its_moving_mean():
    lines = [{"step": step, "reward": float(step % 2)} for step in range(1, 41)]
    chart = reward_curves({"a": lines}).to_dict()
    values = {point["step"]: point["value"] for point in chart["data"]["values"]}
    assert {values[step] for step in range(2, 39)} == {0.5}, "4 of 40 lines"
    assert values[1] == pytest.approx(2 / 3)  # what there is of them
    assert "moving mean over 4 log lines" in json.dumps(chart)


def test_held_out_accuracy_is_shown_by_kind_before_and_after():
    chart = held_out_change({"a": METRICS, "b": METRICS}).to_dict()
    points = [point for layer in chart["layer"] for point in layer.get("data", chart.get("data"))["values"]]
    told = {(point["run"], point["kind"], point["when"]): point["value"] for point in points}
    assert (told["a", "count", "before"], told["b", "count", "after"]) == (0.2, 0.6)
    assert {kind for _, kind, _ in told} == {"all", "count", "format", "reward"}
    assert held_out_change({"a": {"eval_accuracy": 0.4}}) is None


def test_the_program_draws_runs_of_either_training_but_not_both_in_one(tmp_path, capsys):
    for name, lines in (("one", history(0)), ("two", history(0.1)), ("score", [{"step": 1, "loss": 0.5}])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.json").write_text(json.dumps(lines))
        (tmp_path / name / "metrics.json").write_text(json.dumps(METRICS))
    assert rewarded(history(0))
    target = tmp_path / "rewards.png"
    program.main([str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(target)])
    assert target.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        program.main([str(tmp_path / "one"), str(tmp_path / "score"), "--output", str(target)])
    assert "draw them apart" in capsys.readouterr().err
