"""The table and the chart of an experiment, against figures worked by hand."""

import json

import pytest

from src.experiment.summary import BOLD, ONE_SEED, chart, gains, markdown, paired, percent, summarise, write_results

TITLES = {"top1": "top-1"}


def entry(arm: str, seed: int, top1: float, share: float = 0.3, clean: float = 0.7) -> dict:
    return {"share": share, "arm": arm, "seed": seed, "top1": top1, "pairs": 100, "clean": clean}


ENTRIES = [
    entry("random", 1, 0.20), entry("score", 1, 0.30), entry("oracle", 1, 0.50, clean=1.0),
    entry("random", 2, 0.24), entry("score", 2, 0.36), entry("oracle", 2, 0.50, clean=1.0),
    entry("random", 3, 0.22), entry("score", 3, 0.36), entry("oracle", 3, 0.50, clean=1.0),
]  # fmt: skip


def bold(entries: list[dict]) -> list[str]:
    """The names in whose lines something is bold."""
    return [line.split(" | ")[1] for line in markdown(entries, TITLES).splitlines() if "**" in line]


def test_means_and_intervals():
    random, score, oracle = summarise(ENTRIES, ["top1"])
    assert (random.arm, random.seeds, random.clean) == ("random", 3, pytest.approx(0.7))
    assert random.means["top1"] == pytest.approx(0.22)
    # standard deviation 0.02, Student's t for two degrees of freedom 4.3027
    assert random.halves["top1"] == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-4)
    assert score.means["top1"] == pytest.approx(0.34)
    assert oracle.halves["top1"] == 0


def test_gains_are_seed_by_seed():
    gain, half = paired(ENTRIES, "top1", 0.3, "score", "random")  # 0.10, 0.12, 0.14
    assert gain == pytest.approx(0.12)
    assert half == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-4)
    assert paired(ENTRIES, "top1", 0.3, "score", "length") is None
    assert gains(ENTRIES, TITLES) == ["30% damaged, score above random: top-1 +12.0 ± 5.0"]


def test_the_best_but_the_oracle_is_bold():
    lines = markdown(ENTRIES, TITLES).splitlines()
    assert lines[0] == "| faults | trained on | pairs | clean | top-1 |"
    assert lines[2].startswith("| 30% | random | 100 | 70.0 % | 22.0 ± ")
    assert "**34.0" in lines[3]
    assert "**" not in lines[4]
    assert lines[-1] == BOLD


def test_what_cannot_be_told_from_the_best_is_bold_too():
    # CLIP score: 0.32, 0.33, 0.32, so that the score gains -0.02, 0.03 and 0.04 of it, which may be chance
    near = [entry("clip_score", seed, top1) for seed, top1 in zip((1, 2, 3), (0.32, 0.33, 0.32), strict=True)]
    assert bold([*ENTRIES, *near]) == ["highest score", "highest CLIP score"]
    # with wide intervals that overlap, but a gain of 0.01 in every training
    sure = [{**one, "arm": "clip_score", "top1": one["top1"] - 0.01} for one in ENTRIES if one["arm"] == "score"]
    assert bold([*ENTRIES, *sure]) == ["highest score"]


def test_one_training_has_no_interval_and_nothing_is_bold():
    one = [line for line in ENTRIES if line["seed"] == 1]
    assert summarise(one, ["top1"])[0].halves == {"top1": None}
    assert markdown(one, TITLES).splitlines()[2:] == [
        "| 30% | random | 100 | 70.0 % | 20.0 |", "| 30% | highest score | 100 | 70.0 % | 30.0 |",
        "| 30% | clean ones only | 100 | 100.0 % | 50.0 |", "", ONE_SEED,
    ]  # fmt: skip
    assert gains(one, TITLES) == ["30% damaged, score above random: top-1 +10.0"]
    assert percent(0.5, 0.0) == "50.0 ± 0.0", "three trainings that are alike do have one"
    _, _, dots = chart(one, TITLES, "captions").to_dict()["vconcat"][0]["concat"][0]["layer"]
    assert {(point["low"], point["high"]) for point in dots["data"]["values"]} == {(0.2, 0.2), (0.3, 0.3), (0.5, 0.5)}


def test_the_chart_shows_every_training():
    both = [*ENTRIES, *(entry("random", seed, 0.1, share=0.6) for seed in (1, 2))]
    drawn = chart(both, TITLES, "captions").to_dict()
    assert [block["title"] for block in drawn["vconcat"]] == [
        "30% of the captions damaged",
        "60% of the captions damaged",
    ]
    _, ticks, dots = drawn["vconcat"][0]["concat"][0]["layer"]
    assert len(ticks["data"]["values"]) == 9
    assert [point["arm"] for point in dots["data"]["values"]] == ["random", "highest score", "clean ones only"]


def test_results_are_written_as_a_whole(tmp_path):
    said = write_results(ENTRIES, TITLES, "captions", {"settings": {"keep": 0.3}}, tmp_path / "new" / "results")
    found = tmp_path / "new" / "results"
    assert json.loads((found / "results.json").read_text()) == {"settings": {"keep": 0.3}, "trainings": ENTRIES}
    assert (found / "table.md").read_text() in said
    assert (found / "chart.png").stat().st_size > 10_000
