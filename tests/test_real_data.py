"""The embedded scorer on real photographs that it has not seen. Skipped where the sample data are not at hand."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from src.curation.job import run_job
from src.curation.scorer import NANO, Scorer
from src.dataset.records import DataSpec

DATA = Path(os.environ.get("SCORERS_DATA", Path(__file__).parents[2] / "shared" / "data"))
TEST = DATA / "rsicd_aid_test.parquet"


@pytest.mark.slow
@pytest.mark.skipif(not TEST.is_file(), reason="no rsicd_aid_test.parquet in SCORERS_DATA")
def test_a_right_caption_beats_one_of_another_class(tmp_path):
    rows = pq.read_table(TEST).to_pylist()
    rng = np.random.default_rng(0)
    for row in rows:
        others = [other for other in rows if other["label"] != row["label"]]
        wrong = [rng.choice(others[int(rng.integers(len(others)))]["captions"]) for _ in row["captions"]]
        row["captions"] = [*row["captions"], *map(str, wrong)]
    columns = {key: [row[key] for row in rows] for key in ("image", "captions")}
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    spec = DataSpec(str(tmp_path / "pairs.parquet"), text_column="captions")
    summary = run_job(spec, Scorer.from_pretrained(), NANO, tmp_path / "out")
    assert summary.ok == summary.pairs == 10 * len(rows)
    parts = sorted((tmp_path / "out" / "scores").glob("*.parquet"))
    scores = np.concatenate([pq.read_table(part)["score"].to_numpy() for part in parts]).reshape(-1, 2, 5)
    accuracy = float((scores[:, 0] > scores[:, 1]).mean())
    print(f"right above other-class caption: {accuracy:.1%} of {scores[:, 0].size} pairs")
    assert accuracy >= 0.88
