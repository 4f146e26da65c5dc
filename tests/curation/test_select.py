"""Selection: what is kept is what a sort in plain Python keeps; what cannot be decided is refused."""

import csv
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from python_script.select_subset import DEFAULT_CONFIG, SelectConfig, main
from src.config import flatten_keys, load_config
from src.curation.select import Rule, kept_rows, select_subset, write_kept
from src.errors import JobError
from tests.curation.score_tables import failed, pair, write_pictures, write_scores


def kept_ids(path: Path) -> list[str]:
    return pq.read_table(path)["id"].to_pylist()


@pytest.mark.parametrize(("fraction", "kept"), [(0.3, 3), (0.39, 3), (0.01, 1), (1.0, 10)])
def test_fraction_is_of_the_scored_pairs_and_rounds_down(tmp_path, fraction, kept):
    rows = [pair(n, float(n)) for n in range(10)] + [failed(n) for n in range(10, 40)]
    selection = select_subset(write_scores(tmp_path / "job", rows), tmp_path, Rule(fraction=fraction))
    assert kept_ids(selection.path) == [f"pair-{n:05d}" for n in range(10 - kept, 10)]
    assert (selection.pairs, selection.ok, selection.errors, selection.kept) == (40, 10, 30, kept)
    assert selection.cut == 10 - kept


def test_decimal_fraction_is_taken_as_written(tmp_path):
    rows = [pair(n, float(n)) for n in range(100)]
    assert int(0.29 * 100) == 28
    assert select_subset(write_scores(tmp_path / "job", rows), tmp_path, Rule(fraction=0.29)).kept == 29


def test_threshold_keeps_the_scores_at_it_and_above(tmp_path):
    job = write_scores(tmp_path / "job", [pair(n, n / 10) for n in range(10)] + [failed(10)])
    selection = select_subset(job, tmp_path, Rule(threshold=0.7))
    assert kept_ids(selection.path) == ["pair-00007", "pair-00008", "pair-00009"]
    assert "10 ok + 1 errors = 11 pairs; kept 3" in str(selection)


def test_equal_scores_are_kept_in_order_of_id(tmp_path):
    names = ["b", "é", "a", "B", "c"]
    rows = [pair(n, 1.0, id=name) for n, name in enumerate(names)] + [pair(9, 2.0, id="z"), pair(10, 0.0, id="A")]
    selection = select_subset(write_scores(tmp_path / "job", rows), tmp_path, Rule(fraction=0.6))
    assert kept_ids(selection.path) == ["B", "a", "b", "z"]


@settings(max_examples=25, deadline=None)
@given(
    scores=st.lists(st.sampled_from([-1.5, -0.0, 0.0, 0.25, 1e-300, 3.0]), min_size=1, max_size=30),
    fraction=st.sampled_from([0.1, 0.3, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 9),
)
def test_same_result_as_a_plain_sort_for_any_order_of_rows_and_parts(tmp_path_factory, scores, fraction, seed):
    rows = [pair(n, score) for n, score in enumerate(scores)] + [failed(99)]
    best = sorted(rows[:-1], key=lambda row: (-row["score"], row["id"]))
    expected = sorted(row["id"] for row in best[: max(1, int(round(fraction * 100) * len(scores) // 100))])
    random.Random(seed).shuffle(rows)
    folder = tmp_path_factory.mktemp("any")
    selection = select_subset(write_scores(folder / "job", rows, parts=3), folder, Rule(fraction=fraction))
    assert kept_ids(selection.path) == expected


def test_subset_carries_row_score_and_its_rule(tmp_path):
    rows = [pair(7, 0.5, text_index=1, id="b"), pair(3, 0.75, text_index=2, id="a"), pair(1, 0.1), failed(2)]
    selection = select_subset(write_scores(tmp_path / "job", rows), tmp_path / "out", Rule(threshold=0.5))
    table = pq.read_table(selection.path)
    assert table.to_pylist() == [
        {"id": "a", "row": 3, "text_index": 2, "score": 0.75},
        {"id": "b", "row": 7, "text_index": 1, "score": 0.5},
    ]
    rule = json.loads(table.schema.metadata[b"rule"])
    counts = {"pairs": 4, "ok": 3, "errors": 1, "kept": 2, "cut": 0.5}
    assert rule == {"fraction": None, "threshold": 0.5, "ties": "id", **counts}
    assert yaml.safe_load((tmp_path / "out" / "rule.yaml").read_text()) == rule
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["rule.yaml", "subset_ids.parquet"]


def test_kept_rows_come_by_record_in_rising_order(tmp_path):
    rows = [pair(row, row + k / 10, text_index=k, id=f"{9 - row}#{k}") for row in (4, 0, 2) for k in (1, 0)]
    subset = select_subset(write_scores(tmp_path / "job", rows), tmp_path, Rule(fraction=0.9)).path
    assert list(kept_rows(subset)) == [(0, [(1, 0.1)]), (2, [(0, 2.0), (1, 2.1)]), (4, [(0, 4.0), (1, 4.1)])]


@pytest.mark.parametrize(
    ("fraction", "threshold", "message"),
    [
        (None, None, "exactly one of fraction and threshold, not neither"),
        (0.3, 0.5, "exactly one of fraction and threshold, not fraction=0.3 and threshold=0.5"),
        (30, None, "not 30; did you mean 0.3"),
        (0, None, "fraction must be above 0"),
        (-0.1, None, "fraction must be above 0"),
        (float("nan"), None, "fraction must be above 0"),
        (None, float("nan"), "threshold must be a finite number"),
        (None, float("inf"), "threshold must be a finite number"),
    ],
)
def test_rule_refused(fraction, threshold, message):
    with pytest.raises(JobError, match=message):
        Rule(fraction, threshold)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_score_that_is_no_number_is_refused_with_the_first_id(tmp_path, bad):
    rows = [pair(0, 1.0), pair(2, bad), pair(1, bad), failed(3)]
    with pytest.raises(JobError, match="score of pair-00001 is not a finite number"):
        select_subset(write_scores(tmp_path / "job", rows), tmp_path, Rule(fraction=0.5))


def test_job_without_any_score_is_refused_with_its_errors(tmp_path):
    rows = [failed(0), failed(1), failed(2, "empty_text")]
    with pytest.raises(JobError, match="no pair has a score: 2 missing_image, 1 empty_text"):
        select_subset(write_scores(tmp_path / "job", rows), tmp_path, Rule(fraction=0.5))


def test_threshold_that_keeps_nothing_is_refused_with_the_highest_score(tmp_path):
    job = write_scores(tmp_path / "job", [pair(0, 1.25)])
    with pytest.raises(JobError, match=r"threshold=2 keeps nothing: the highest score is 1\.25"):
        select_subset(job, tmp_path, Rule(threshold=2))
    assert not (tmp_path / "subset_ids.parquet").exists()


def test_folder_without_a_finished_table_is_refused(tmp_path):
    with pytest.raises(JobError, match="no score table"):
        select_subset(tmp_path, tmp_path, Rule(fraction=0.5))
    job = write_scores(tmp_path / "job", [pair(0, 1.0)])
    (job / "summary.json").unlink()
    with pytest.raises(JobError, match="has not finished"):
        select_subset(job, tmp_path, Rule(fraction=0.5))


def test_damaged_part_is_refused_by_name(tmp_path):
    job = write_scores(tmp_path / "job", [pair(n, 1.0) for n in range(4)], parts=2)
    (job / "scores" / "part-00001.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(JobError, match=r"part-00001\.parquet"):
        select_subset(job, tmp_path, Rule(fraction=0.5))


def test_kept_data_is_the_input_cut_to_the_kept_rows_with_their_scores(tmp_path):
    data = write_pictures(tmp_path / "data", [f"caption {n}" for n in range(6)])
    job = write_scores(tmp_path / "job", [pair(n, float(n % 4)) for n in range(6)], data)
    subset = select_subset(job, tmp_path / "out", Rule(threshold=2)).path
    with write_kept(job, subset, tmp_path / "out").open(encoding="utf-8", newline="") as file:
        kept = list(csv.DictReader(file))
    assert [(row["filename"], row["title"], row["place"], float(row["score"])) for row in kept] == [
        ("2.png", "caption 2", "place 2", 2.0),
        ("3.png", "caption 3", "place 3", 3.0),
    ]


def test_default_file_says_what_the_program_does_by_default():
    written = flatten_keys(OmegaConf.load(DEFAULT_CONFIG))
    assert written == flatten_keys(OmegaConf.structured(SelectConfig))


def test_program_writes_everything_beside_the_scores(tmp_path, capsys):
    data = write_pictures(tmp_path / "data", [f"caption {n}" for n in range(10)])
    job = write_scores(tmp_path / "job", [pair(n, float(n)) for n in range(9)] + [failed(9)], data)
    main(load_config(SelectConfig, DEFAULT_CONFIG, [f"scores_dir={job}", "fraction=0.34"]))
    assert "9 ok + 1 errors = 10 pairs; kept 3 (33.3% of ok)" in capsys.readouterr().out
    made = {"subset_ids.parquet", "rule.yaml", "kept.csv", "report.html"}
    assert made == {path.name for path in job.iterdir()} - {"scores", "manifest.json", "summary.json"}


def test_data_that_changed_since_scoring_is_not_kept(tmp_path):
    data = write_pictures(tmp_path / "data", ["a", "b"])
    job = write_scores(tmp_path / "job", [pair(n, float(n)) for n in range(2)], data)
    subset = select_subset(job, tmp_path / "out", Rule(fraction=0.5)).path
    path = tmp_path / "data" / "data.csv"
    path.write_text(path.read_text().replace("0.png", "9.png"))
    with pytest.raises(JobError, match=r"data\.csv has changed since it was scored: input\..*blake2b"):
        write_kept(job, subset, tmp_path / "out")
    assert not (tmp_path / "out" / "kept.csv").exists()
