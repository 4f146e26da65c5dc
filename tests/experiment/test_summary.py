"""The table and the chart of an experiment, against figures worked by hand."""

import pytest

from src.experiment.summary import chart, markdown, paired, summarise

TITLES = {"top1": "top-1"}


def entry(arm: str, seed: int, top1: float, share: float = 0.3, clean: float = 0.7) -> dict:
    return {"share": share, "arm": arm, "seed": seed, "top1": top1, "pairs": 100, "clean": clean}


ENTRIES = [
    entry("random", 1, 0.20), entry("score", 1, 0.30), entry("oracle", 1, 0.50, clean=1.0),
    entry("random", 2, 0.24), entry("score", 2, 0.36), entry("oracle", 2, 0.50, clean=1.0),
    entry("random", 3, 0.22), entry("score", 3, 0.36), entry("oracle", 3, 0.50, clean=1.0),
]  # fmt: skip


def test_means_and_intervals():
    random, score, oracle = summarise(ENTRIES, ["top1"])
    assert (random.arm, random.seeds, random.clean) == ("random", 3, pytest.approx(0.7))
    assert random.means["top1"] == pytest.approx(0.22)
    # standard deviation 0.02, Student's t for two degrees of freedom 4.3027
    assert random.halves["top1"] == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-4)
    assert score.means["top1"] == pytest.approx(0.34)
    assert oracle.halves["top1"] == 0
    assert summarise(ENTRIES[:1], ["top1"])[0].halves == {"top1": 0.0}


def test_gains_are_seed_by_seed():
    gain, half = paired(ENTRIES, "top1", 0.3, "score", "random")  # 0.10, 0.12, 0.14
    assert gain == pytest.approx(0.12)
    assert half == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-4)


def test_the_best_but_the_oracle_is_bold():
    lines = markdown(summarise(ENTRIES, ["top1"]), TITLES).splitlines()
    assert lines[0] == "| faults | trained on | pairs | clean | top-1 |"
    assert lines[2].startswith("| 30% | random | 100 | 70.0 % | 22.0 ± ")
    assert "**34.0" in lines[3]
    assert "**" not in lines[4]


def test_the_chart_shows_every_training():
    both = [*ENTRIES, *(entry("random", seed, 0.1, share=0.6) for seed in (1, 2))]
    drawn = chart(both, TITLES).to_dict()
    assert [block["title"] for block in drawn["vconcat"]] == [
        "30% of the captions damaged",
        "60% of the captions damaged",
    ]
    _, ticks, dots = drawn["vconcat"][0]["hconcat"][0]["layer"]
    assert len(ticks["data"]["values"]) == 9
    assert [point["arm"] for point in dots["data"]["values"]] == ["random", "highest score", "clean ones only"]
