"""Two selections side by side: the counts are those of sets, and the page shows what only one of them keeps."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from python_script.compare_subsets import main
from src.curation.compare import compare_subsets
from src.curation.rules import Rule
from src.curation.select import select_subset
from src.errors import JobError
from tests.curation.score_tables import failed, pair, write_pictures, write_scores

VOID = {"meta", "img", "br"}


class Outline(HTMLParser):
    """The text of a page; fails where a tag is closed that is not open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.images = 0
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.images += tag == "img"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] not in ("style", "script"):
            self.text.append(" ".join(data.split()))


@pytest.fixture
def job(tmp_path) -> Path:
    """Ten pairs, the better the higher the number, the shorter the text."""
    data = write_pictures(tmp_path / "data", [f"caption <b>{n}</b>" for n in range(11)])
    rows = [pair(n, float(n), source="low" if n < 4 else "high", text_chars=100 - n) for n in range(10)]
    return write_scores(tmp_path / "job", [*rows, failed(10, source="lost")], data)


def cut(job: Path, name: str, **keys) -> Path:
    return select_subset(job, job.parent / name, Rule.from_keys(keys)).path.parent


def test_counts_and_page(job, capsys):
    best, longest = cut(job, "a", fraction=0.5), cut(job, "b", by="text_chars", fraction=0.6)
    main([str(best), str(longest / "subset_ids.parquet")])
    printed = capsys.readouterr().out
    table = [line.split() for line in printed.splitlines() if line.startswith(("low", "high", "all"))]
    assert table == [
        ["high", "6", "1", "4", "1", "0.167"],
        ["low", "4", "0", "0", "4", "0.000"],
        ["all", "10", "1", "4", "5", "0.100"],
    ]
    page = (longest / "compare.html").read_text(encoding="utf-8")
    outline = Outline(page)
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert outline.images == 4 + 1 + 4
    headings = [text for text in outline.text if " alone" in text and ":" in text]
    assert headings == ["high: 4 kept by A alone", "high: 1 kept by B alone", "low: 4 kept by B alone"]
    assert "caption <b>9</b>" in outline.text
    assert "the best 50 % of the scored pairs, equal scores in the order of their ids" in outline.text
    assert "the best 60 % of the scored pairs by text length, equal values in the order of their ids" in outline.text
    gallery = re.split("<h3>", page)[2]
    assert re.findall(r'<span class="value">([\d.]+)</span>', gallery) == ["4.000"]


@settings(max_examples=15, deadline=None)
@given(
    scores=st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from(["x", "y", ""])), min_size=1, max_size=20
    ),
    fraction=st.sampled_from([0.2, 0.5, 1.0]),
)
def test_overlaps_are_those_of_sets(tmp_path_factory, scores, fraction):
    folder = tmp_path_factory.mktemp("sets")
    rows = [pair(n, score, source=source) for n, (score, source) in enumerate(scores)]
    job = write_scores(folder / "job", rows)
    one, two = cut(job, "a", fraction=fraction), cut(job, "b", fraction=0.4, by="random")
    a, b = (set(pq.read_table(path / "subset_ids.parquet")["row"].to_pylist()) for path in (one, two))
    comparison = compare_subsets(one, two, gallery=0)
    total = comparison.total
    assert (total.both, total.only_a, total.only_b) == (len(a & b), len(a - b), len(b - a))
    assert total.jaccard == len(a & b) / len(a | b)
    for found in comparison.sources:
        own = {n for n, (_, source) in enumerate(scores) if source == found.source}
        counts = (len(own), len(own & a & b), len(own & a - b), len(own & b - a))
        assert (found.ok, found.both, found.only_a, found.only_b) == counts
    assert sum(found.ok for found in comparison.sources) == len(rows)
    Outline(comparison.path.read_text(encoding="utf-8"))


def test_a_selection_and_itself(job):
    same = cut(job, "a", threshold=7)
    comparison = compare_subsets(same, same)
    assert comparison.total.jaccard == 1
    assert "Nothing: they keep the same pairs." in Outline(comparison.path.read_text(encoding="utf-8")).text


def test_folder_moved_with_its_selections_still_compares(job, tmp_path):
    cut(job, "a", fraction=0.5)
    cut(job, "b", fraction=0.2)
    shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    shutil.rmtree(job)
    moved = tmp_path.with_name("moved")
    assert compare_subsets(moved / "a", moved / "b", gallery=0).total.both == 2


def test_what_cannot_be_compared_is_refused(job, tmp_path, capsys):
    best = cut(job, "a", fraction=0.5)
    with pytest.raises(JobError, match=r"no selection: .*none/?.* does not exist; run select_subset\.py first"):
        compare_subsets(best, tmp_path / "none")
    other = write_scores(tmp_path / "other", [pair(n, float(n), id=f"x{n}") for n in range(4)])
    strange = select_subset(other, tmp_path / "c", Rule(fraction=0.5)).path
    with pytest.raises(JobError, match=r"different score tables, .*job and .*other"):
        compare_subsets(best, strange)
    with pytest.raises(JobError, match=r"keeps x2, which the score table in .*job does not hold"):
        compare_subsets(best, strange, scores_dir=job)
    table = pq.read_table(best / "subset_ids.parquet")
    rule = {b"rule": table.schema.metadata[b"rule"]}
    pq.write_table(table.replace_schema_metadata(rule), best / "subset_ids.parquet")
    with pytest.raises(JobError, match="does not say which score table it is from; give scores_dir"):
        compare_subsets(best, best)
    with pytest.raises(SystemExit):
        main([str(best), str(best)])
    assert "error: " in capsys.readouterr().err
    main([str(best), str(best), "--scores-dir", str(job), "--output", str(tmp_path / "page" / "both.html")])
    assert (tmp_path / "page" / "both.html").is_file()
