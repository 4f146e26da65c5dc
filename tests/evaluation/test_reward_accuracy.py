"""Measures against slow twins, controls on data where the answer is known, and the program on made scenes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src.curation.scorer import NANO, Scorer
from src.dataset.preference_build import scene_groups, write_groups
from src.evaluation.reward_accuracy import Pairs, auc, by, longer_wins, score_pairs, summary, wilson, words_win

ROOT = Path(__file__).resolve().parents[2]


def group(chosen: str, rejected: list[str], images: list | None = None, kinds: list[str] | None = None) -> dict:
    return {"chosen": chosen, "rejected": rejected, "images": images or [], "question": "", "source": "s",
            "kinds": kinds or []}  # fmt: skip


def pairs_of(groups: list[dict]) -> Pairs:
    rows = [(i, g["source"], "k", 0.0, 0.0) for i, g in enumerate(groups) for _ in g["rejected"]]
    return Pairs(*map(np.array, zip(*rows, strict=True)))


class Counting:
    """A scorer whose score is the number on the image, if there is one, and 100 for a text that says so."""

    def score(self, pairs):
        return [float(pair["images"][0] if pair["images"] else 0) + 100 * (pair["text"] == "right") for pair in pairs]


def test_interval_and_auc_are_the_known_ones():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(0, 9, 40) / 2, rng.integers(0, 9, 70) / 3
    slow = np.mean([(c > r) + (c == r) / 2 for c in chosen for r in rejected])
    assert auc(chosen, rejected) == pytest.approx(slow)


def test_summary_counts_a_tie_as_wrong_and_each_chosen_once():
    pairs = Pairs(np.array([0, 0, 1]), np.array(["a", "a", "b"]), np.array(["x", "y", "x"]),
                  np.array([2.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0]))  # fmt: skip
    measured = summary(pairs)
    assert measured["accuracy"] == pytest.approx(1 / 3)
    assert measured["auc"] == pytest.approx(np.mean([1, 0.5, 0, 0.5, 0, 0]))
    assert sum(bin_["pairs"] for bin_ in measured["calibration"]) == 3
    assert {name: entry["pairs"] for name, entry in by(pairs, "kind").items()} == {"x": 2, "y": 1}


def test_a_perfectly_calibrated_model_has_no_calibration_error():
    rng = np.random.default_rng(0)
    gap = rng.normal(0, 2, 40_000)
    gap = np.abs(gap) * np.where(rng.random(len(gap)) < 1 / (1 + np.exp(-np.abs(gap))), 1, -1)
    number = np.arange(len(gap))
    measured = summary(Pairs(number, number, number, gap, np.zeros_like(gap)))
    assert measured["calibration_error"] < 0.02


def test_controls_take_the_images_away_and_mix_them():
    groups = [group("right", ["wrong"], [i + 1]) for i in range(6)] + [group("right", ["wrong"])]
    assert score_pairs(Counting(), groups).rejected.tolist() == [1, 2, 3, 4, 5, 6, 0]
    assert score_pairs(Counting(), groups, "image_removed").rejected.tolist() == [0] * 7
    mixed = score_pairs(Counting(), groups, "images_shuffled", seed=1).rejected.tolist()
    assert sorted(mixed[:6]) == [1, 2, 3, 4, 5, 6]
    assert all(a != b for a, b in zip(mixed[:6], [1, 2, 3, 4, 5, 6], strict=True))
    assert mixed[6] == 0


def test_longer_wins_and_words_win_find_what_texts_give_away():
    rng = np.random.default_rng(0)
    words = ["ships", "planes", "cars", "roads", "lakes"]
    sentences = [[" ".join(rng.choice(words, 6)) for _ in range(2)] for _ in range(1000)]
    fair = [group(a, [b]) for a, b in sentences]
    given_away = [group(a, [f"{b} perhaps"]) for a, b in sentences]
    assert summary(words_win(given_away, pairs_of(given_away)))["accuracy"] > 0.95
    assert 0.42 < summary(words_win(fair, pairs_of(fair)))["accuracy"] < 0.58
    assert summary(longer_wins(given_away, pairs_of(given_away)))["accuracy"] < 0.2


@pytest.mark.slow
def test_the_embedded_scorer_looks_at_the_image_and_the_program_shows_it(tmp_path):
    write_groups(scene_groups(range(910_000_000, 910_000_080)), tmp_path / "scenes.parquet")
    program = [sys.executable, "python_script/evaluation/reward_accuracy.py"]
    keys = [f"data.target_root={tmp_path / 'scenes.parquet'}", f"data.cache_dir={tmp_path}", f"output_dir={tmp_path}"]
    done = subprocess.run([*program, *keys], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "reward_accuracy.json").read_text())
    controls = result["controls"]
    for kind in ("other_scene", "wrong_colour", "wrong_count", "wrong_relation"):
        assert result["by_kind"][kind]["accuracy"] > 0.8, kind
        for control in controls:
            assert 0.3 < controls[control]["by_kind"][kind]["accuracy"] < 0.7, (control, kind)
    assert "wrong_colour" in done.stdout
    page = (tmp_path / "reward_accuracy.html").read_text()
    assert "Accuracy by kind of wrong answer" in page
    assert "<script src=" not in page


def test_errors_name_the_control(tmp_path):
    program = [sys.executable, "python_script/evaluation/reward_accuracy.py", "data.target_root=x", "controls=[magic]"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, "no control magic" in done.stderr) == (2, True)


def test_the_scores_of_the_embedded_model_go_in_by_group():
    groups = [group("a lake .", ["two ships .", "a"], kinds=["x", "y"]), group("a", ["b"])]
    pairs = score_pairs(Scorer.from_pretrained(NANO), groups)
    assert pairs.group.tolist() == [0, 0, 1]
    assert pairs.kind.tolist() == ["x", "y", "unlabelled"]
    assert pairs.chosen[0] == pairs.chosen[1]
