"""What was kept of each value, against a count by hand."""

import csv
import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from python_script.tally_subset import main
from src.curation.job import run_job
from src.curation.select import Rule, select_subset
from src.curation.tally import tally
from src.dataset.records import DataSpec
from src.errors import JobError
from tests.curation.test_job import MODEL


@pytest.fixture
def scored(tmp_path, pictures, tiny_scorer):
    with (pictures / "d.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "title", "kind"])
        writer.writerows((f"{'abcdefgh'[i % 8]}.png", f"text number {i}", ["x", "y", ""][i % 3]) for i in range(40))
        writer.writerow(["lost.png", "t", "x"])
    out = tmp_path / "out"
    run_job(DataSpec(str(pictures / "d.csv")), tiny_scorer, MODEL, out)
    select_subset(out, out, Rule(fraction=0.3))
    return out


def test_counts_by_hand(scored):
    rows = tally(scored, scored / "subset_ids.parquet", "kind")
    kept = Counter(["x", "y", ""][row % 3] for row in pq.read_table(scored / "subset_ids.parquet")["row"].to_pylist())
    assert {row.value: (row.pairs, row.kept) for row in rows} == {
        "x": (14, kept["x"]),
        "y": (13, kept["y"]),
        "": (13, kept[""]),
    }
    assert sum(row.random for row in rows) == sum(kept.values()) == 12


def test_several_files_are_counted_through(tmp_path, pictures, tiny_scorer):
    for name, kinds in (("a", "xxy"), ("b", "yz")):
        lines = "".join(
            f"{letter}.png,text {name}{letter},{kind}\n" for letter, kind in zip("abc", kinds, strict=False)
        )
        (pictures / f"{name}.csv").write_text("filename,title,kind\n" + lines)
    run_job(DataSpec(f"{pictures}/[ab].csv"), tiny_scorer, MODEL, tmp_path / "out")
    subset = select_subset(tmp_path / "out", tmp_path / "out", Rule(fraction=1.0)).path
    counts = {row.value: (row.pairs, row.kept) for row in tally(tmp_path / "out", subset, "kind")}
    assert counts == {"x": (2, 2), "y": (2, 2), "z": (1, 1)}


def test_random_draw_follows_its_seed(scored):
    draws = [[r.random for r in tally(scored, scored / "subset_ids.parquet", "title", seed)] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_program_prints_the_table(scored, capsys):
    main([str(scored), "--column", "kind", "--good", "x"])
    printed = capsys.readouterr().out
    assert "all" in printed
    assert "of the kept pairs are x; 35.0% of all" in printed


def test_unknown_column(scored, capsys):
    with pytest.raises(JobError, match="no column 'colour'"):
        tally(scored, scored / "subset_ids.parquet", "colour")
    with pytest.raises(SystemExit) as caught:
        main([str(scored), "--column", "colour"])
    assert caught.value.code == 2
    assert json.loads((scored / "summary.json").read_text())["ok"] == 40
