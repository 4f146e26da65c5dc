"""The explored table keeps what select_subset keeps, pages and filters right, and stays quick with many rows."""

import itertools
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from src.curation.rules import Rule
from src.curation.select import select_subset
from src.errors import JobError
from src.serving.web.explore import ExploreTab, Look
from src.serving.web.scored_data import PAGE, SORTS, Filters, ScoredData
from tests.curation.score_tables import SCHEMA, pair, write_pictures, write_scores
from tests.serving.web.conftest import RECORDS

ANY = Filters()


@pytest.fixture(scope="module")
def data(scored):
    opened = ScoredData(scored, "kind").wait()
    yield opened
    opened.close()


def everything(data: ScoredData, filters: Filters, cut: int, kept: bool, sort: str = "best first") -> list[dict]:
    pages = (data.page(filters, cut, kept, sort, number) for number in itertools.count())
    return [card for page in itertools.takewhile(bool, pages) for card in page]


@pytest.mark.parametrize("rule", [Rule(fraction=0.29), Rule(fraction=1e-9), Rule(threshold=5.0), Rule(fraction=1.0)])
def test_a_cut_keeps_what_select_subset_keeps(data, scored, tmp_path, rule):
    cut = data.quota(rule.fraction) if rule.fraction is not None else data.above(rule.threshold)
    wanted = pq.read_table(select_subset(scored, tmp_path, rule).path)["row"].to_pylist()
    assert sorted(card["row"] for card in everything(data, ANY, cut, kept=True)) == sorted(wanted)
    assert data.counts(ANY, cut) == (len(wanted), RECORDS - len(wanted))


def test_ties_go_by_id(tmp_path):
    spec = write_pictures(tmp_path / "data", ["a", "b", "c", "d"])
    rows = [pair(0, 1.0, id="z"), pair(1, 1.0, id="a"), pair(2, 1.0, id="m"), pair(3, 0.5, id="b")]
    data = ScoredData(write_scores(tmp_path / "job", rows, spec)).wait()
    assert [card["row"] for card in everything(data, ANY, data.quota(0.5), kept=True)] == [1, 2]
    data.close()


def test_pages_filters_and_orders(data):
    filters = Filters(source="place 1", label="even", status="ok", text="NO. 1")
    cards = everything(data, filters, 90, True) + everything(data, filters, 90, False)
    rows = [row for row in range(RECORDS) if row % 3 == 1 and row % 2 == 0 and row % 10 != 9 and str(row)[0] == "1"]
    assert sorted(card["row"] for card in cards) == rows
    assert sum(data.counts(filters, 90)) == len(rows) == sum(data.histogram(filters))
    for sort in SORTS:
        shown = [card["row"] for card in everything(data, Filters(status="ok"), 90, True, sort)]
        assert len(shown) == len(set(shown)) == 90
    nearest = everything(data, Filters(status="ok"), 90, True, "nearest the cut")
    assert nearest[0]["score"] == pytest.approx(data.score_at(90))
    assert len(data.page(ANY, 90, True, "best first", 0)) == PAGE
    assert data.statuses == ["ok", "missing_image"]
    assert (sorted(data.sources), sorted(data.classes)) == (["place 0", "place 1", "place 2"], ["even", "odd"])
    assert data.reading is None
    hostile = Filters(text="'; DROP TABLE ranked; --")
    assert data.counts(hostile, 90) == (0, 0)


def test_a_record_with_its_neighbours(data):
    found = data.record(50, 0)
    assert found["text"].endswith("No. 50")
    assert found["image"].startswith("data:image/jpeg")
    assert [each["row"] for each in found["neighbours"]] == [45, 46, 47, 48, 50, 51, 52, 53, 54]
    assert [each["row"] for each in found["neighbours"] if each["here"]] == [50]
    assert len(data.record(0, 0)["neighbours"]) == 5
    missing = data.record(9, 0)
    assert (missing["score"], missing["neighbours"], missing["status"]) == (None, [], "missing_image")
    assert missing["missing"].startswith("missing_image: ")
    assert data.record(10**6, 0) is None


def test_an_export_is_what_select_subset_writes(data, scored, tmp_path):
    rule = Rule(threshold=6.5)
    with zipfile.ZipFile(data.export(rule)) as archive:
        archive.extractall(tmp_path)
    wanted = select_subset(scored, tmp_path / "wanted", rule).path
    assert pq.read_table(tmp_path / "subset" / "subset_ids.parquet").equals(pq.read_table(wanted))
    assert (tmp_path / "subset" / "rule.yaml").read_text() == wanted.with_name("rule.yaml").read_text()
    with pytest.raises(JobError, match="keeps nothing"):
        data.export(Rule(threshold=99.0))


def test_data_that_is_gone_or_lacks_the_column_leaves_the_scores(tmp_path):
    spec = write_pictures(tmp_path / "data", ["a", "b"])
    job = write_scores(tmp_path / "job", [pair(0, 1.0), pair(1, 2.0)], spec)
    odd = ScoredData(job, "no_such").wait()
    assert "no column 'no_such'" in odd.reading
    assert odd.page(ANY, 1, True, "best first", 0)[0]["text"] == "b"
    odd.close()
    Path(spec["path"]).unlink()
    gone = ScoredData(job).wait()
    assert gone.reading.startswith("the texts cannot be read")
    [card] = gone.page(ANY, 1, True, "best first", 0)
    assert (card["row"], card["text"]) == (1, "")
    assert card["missing"].startswith("missing_record")
    gone.close()


def test_pairs_without_any_score_are_refused(tmp_path):
    job = write_scores(tmp_path / "job", [pair(0, None, status="missing_image")], {"path": "x.csv"})
    with pytest.raises(JobError, match=r"no pair of .* has a score"):
        ScoredData(job)


def many_rows(folder: Path, rows: int) -> ScoredData:
    """A score table of so many rows over twenty pictures, opened."""
    spec = write_pictures(folder / "data", [f"picture {number}" for number in range(20)])
    names = [f"{row % 20}.png,a caption of place {row} with {row % 7} planes,x" for row in range(rows)]
    Path(spec["path"]).write_text("\n".join(["filename,title,place", *names]) + "\n", encoding="utf-8")
    job = write_scores(folder / "job", [pair(0, 1.0)], spec)
    rng = np.random.default_rng(0)
    columns = {
        "id": [f"pair-{row:07d}" for row in range(rows)],
        "row": np.arange(rows),
        "text_index": np.zeros(rows, np.int32),
        "score": rng.gamma(3, 2, rows),
        "status": ["ok"] * rows,
        "error": [None] * rows,
        "source": [f"s{row % 30}" for row in range(rows)],
        "text_chars": rng.integers(5, 90, rows).astype(np.int32),
        "width": np.full(rows, 32, np.int32),
        "height": np.full(rows, 32, np.int32),
        **{name: ["x"] * rows for name in ("template", "model", "position_scheme")},
    }
    pq.write_table(pa.table(columns, schema=SCHEMA), job / "scores" / "part-00000.parquet")
    return ScoredData(job).wait()


def test_moving_the_threshold_over_a_hundred_thousand_records_takes_no_time(tmp_path):
    """Medians of CPU time, as other programs may run beside."""
    data = many_rows(tmp_path, 100_000)
    assert (data.pairs, data.reading) == (100_000, None)
    tab, look, took = ExploreTab(data), Look(), {}
    for name, filters in (("all", ()), ("text", ("", "", "ok", "5 planes", "best first"))):
        if filters:
            tab.filter(look, *filters)
        times = []
        for step in range(9):
            began, clock = time.process_time(), time.monotonic()
            shown = tab.by_threshold(look, 3 + step / 3)
            times.append((time.process_time() - began, time.monotonic() - clock))
            assert len(shown[3]["cards"]) == PAGE
        took[name] = np.median(times, axis=0)
    print(
        "seconds of CPU and of the clock for moving the threshold:", {k: v.round(3).tolist() for k, v in took.items()}
    )
    assert max(cpu for cpu, _ in took.values()) < 0.3
    event = SimpleNamespace(_data={"page": 400})
    assert tab.turn_kept(look, event)["page"] == 400
    data.close()
