"""The report: complete in one file, safe with hostile data, and the same size for any size of table."""

import json
import re
from pathlib import Path

import pytest
from markupsafe import escape

from src.curation.report import rule_text, write_report
from src.curation.report_charts import POINTS
from src.curation.select import Rule, select_subset
from src.errors import JobError
from tests.curation.score_tables import failed, pair, write_pictures, write_scores

HALF = Rule(fraction=0.5)


def report(folder: Path, rows: list, captions: list[str], rule: Rule = HALF, **options) -> str:
    job = write_scores(folder / "job", rows, write_pictures(folder / "data", captions))
    subset = select_subset(job, folder / "out", rule).path
    return write_report(job, subset, folder / "out" / "report.html", **options).read_text(encoding="utf-8")


def body(page: str) -> str:
    """The page without its scripts."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def charts(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def chart_values(spec: dict) -> list[list[dict]]:
    return [layer["data"]["values"] for layer in spec["layer"]]


def test_page_asks_the_network_for_nothing(tmp_path):
    page = report(tmp_path, [pair(n, float(n)) for n in range(6)], [f"caption {n}" for n in range(6)])
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//", body(page))
    assert "url(" not in body(page)
    assert "@import" not in page
    assert "http" not in json.dumps(charts(page))
    assert set(re.findall(r"<(link|iframe|object|embed|base)\b", body(page))) == set()
    assert body(page).count('<img src="data:image/jpeg;base64,') == 9 + 9  # three of each half in three groups


def test_hostile_text_is_shown_as_text(tmp_path):
    attack = "</figcaption><script>alert('x')</script>\"><img src=x onerror=alert(1)>"
    rows = [pair(n, float(n), source=attack, id=f"{attack}{n}", text_chars=n + 1) for n in range(4)] + [
        failed(4) | {"error": attack}
    ]
    page = report(tmp_path, rows, [attack] * 5)
    assert page.count("<script") == 3
    assert "<img src=x" not in page
    assert "onerror=alert(1)>" not in page
    assert f'<p dir="auto">{escape(attack)}</p>' in body(page)
    assert charts(page)["length"]["layer"][0]["data"]["values"][0]["id"].startswith(attack)


def test_image_that_is_gone_leaves_its_reason(tmp_path):
    rows = [pair(n, float(n)) for n in range(4)]
    job = write_scores(tmp_path / "job", rows, write_pictures(tmp_path / "data", ["a b c"] * 4))
    (tmp_path / "data" / "3.png").unlink()
    (tmp_path / "data" / "2.png").write_bytes(b"no picture")
    subset = select_subset(job, tmp_path / "out", Rule(fraction=0.5)).path
    page = write_report(job, subset, tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count('<span class="none">missing_image: ') == 3
    assert page.count('<span class="none">unreadable_image: ') == 3
    assert body(page).count("<img ") == 6


def test_data_that_was_moved_away_leaves_the_rest_of_the_report(tmp_path):
    rows = [pair(n, float(n), source="city") for n in range(4)]
    job = write_scores(tmp_path / "job", rows, {"path": str(tmp_path / "gone.csv")})
    subset = select_subset(job, tmp_path / "out", Rule(fraction=0.5)).path
    page = write_report(job, subset, tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("the record can no longer be read") == 12
    assert "city" in body(page)


def test_histogram_counts_every_scored_pair_once(tmp_path):
    rows = [pair(n, (n * 37 % 100) / 7) for n in range(100)] + [failed(100)]
    page = report(tmp_path, rows, ["text"] * 101, Rule(fraction=0.3), gallery=0)
    bars, cut, _ = chart_values(charts(page)["histogram"])
    total = {state: sum(bar["pairs"] for bar in bars if bar["state"] == state) for state in ("kept", "dropped")}
    assert total == {"kept": 30, "dropped": 70}
    assert cut[0]["cut"] == pytest.approx(70 / 7)
    assert min(bar["from"] for bar in bars if bar["state"] == "kept") <= 10 <= max(bar["to"] for bar in bars)


def test_equal_scores_still_draw(tmp_path):
    page = report(tmp_path, [pair(n, 1.5) for n in range(8)], ["text"] * 8)
    bars = chart_values(charts(page)["histogram"])[0]
    assert [(bar["state"], bar["pairs"]) for bar in bars] == [("dropped", 4), ("kept", 4)]
    assert "One of the two does not vary." in page
    assert list(charts(page)) == ["histogram"]


def test_sample_of_points_is_bounded_and_does_not_depend_on_the_order_of_rows(tmp_path):
    rows = [pair(n, (n * 7919 % 9973) / 9973, text_chars=1 + n % 90) for n in range(3 * POINTS)]
    first = report(tmp_path / "a", rows, ["text"], gallery=0)
    second = report(tmp_path / "b", rows[::-1], ["text"], gallery=0)
    points = chart_values(charts(first)["length"])[0]
    assert len(points) == POINTS
    assert chart_values(charts(second)["length"]) == chart_values(charts(first)["length"])
    assert len(first) < 3_000_000


def test_source_without_a_kept_pair_is_flagged(tmp_path):
    rows = [pair(n, float(n), source="desert" if n < 5 else "port") for n in range(10)]
    rows.append(failed(10, source="mine"))
    page = body(report(tmp_path, rows, ["text"] * 11))
    assert re.search(r"1 source was wiped out by the rule:</b>\s*desert\s*</p>", page)
    assert page.count('<span class="tag error">wiped out</span>') == 1
    assert re.search(r"port</td>\s*<td class=\"n\">5</td><td class=\"n\">5</td>\s*<td class=\"n\">100\.0 %", page)
    assert "no pair of it has a score" in page


def test_errors_are_counted_by_kind_with_examples(tmp_path):
    rows = [pair(0, 1.0), pair(1, 2.0)] + [failed(n) for n in range(2, 8)] + [failed(8, "empty_text")]
    page = body(report(tmp_path, rows, ["text"] * 9))
    kinds = re.findall(r'<span class="tag error">(\w+)</span></td><td class="n">(\d+)</td>', page)
    assert kinds == [("missing_image", "6"), ("empty_text", "1")]
    assert re.findall(r"<code>(pair-\d+)</code> no picture for \d", page) == [
        "pair-00002",
        "pair-00003",
        "pair-00004",
        "pair-00008",
    ]


def test_gallery_shows_the_edges_and_one_text_of_a_record(tmp_path):
    rows = [pair(n, float(n)) for n in range(10)] + [pair(9, 9.5, text_index=1, id="pair-00009#1")]
    page = report(tmp_path, rows, [f"text {n}" for n in range(10)], Rule(threshold=5.0), gallery=2)
    groups = re.split(r"<h3>", body(page))[1:]
    shown = [re.findall(r'<span class="value">([\d.]+)</span>', group) for group in groups]
    assert shown[0] == ["9.500", "8.000"]
    assert shown[2] == ["5.000", "6.000"]
    assert shown[3] == ["4.000", "3.000"]
    assert shown[5] == ["0.000", "1.000"]
    assert all(float(score) >= 5 for score in shown[1])
    assert all(float(score) < 5 for score in shown[4])


def test_endless_caption_is_cut_and_its_length_told(tmp_path):
    page = report(tmp_path, [pair(0, 1.0), pair(1, 2.0)], ["x" * 100_000, "short"])
    assert "… (100,000 characters)" in page
    assert max(len(run) for run in re.findall("x+", body(page))) == 2000


def test_subset_of_other_making_is_refused(tmp_path):
    job = write_scores(tmp_path / "job", [pair(0, 1.0)])
    with pytest.raises(JobError, match="not a subset written by select_subset"):
        write_report(job, job / "scores" / "part-00000.parquet", tmp_path / "report.html")


def test_score_is_charted_against_resolution(tmp_path):
    rows = [pair(n, float(n), width=100 * (n + 1), height=1000) for n in range(9)] + [
        pair(9, 0.5, width=None, height=None)
    ]
    page = report(tmp_path, rows, ["text"] * 10, gallery=0)
    points, _, cut, _ = chart_values(charts(page)["size"])
    assert sorted(point["megapixels"] for point in points) == pytest.approx([0.1 * n for n in range(1, 10)])
    assert cut[0]["cut"] == 4
    assert "Correlation of score and megapixels of image over all scored pairs: +1.00." in body(page)


def test_source_cut_to_a_trace_is_flagged(tmp_path):
    rows = [pair(n, float(n), source="port") for n in range(100, 150)]
    rows += [pair(n, 120.0 * (n == 0), source="mine") for n in range(50)]
    page = body(report(tmp_path, rows, ["text"], Rule(threshold=100), gallery=0))
    assert re.search(r"1 source was cut to under a tenth of the common share:</b>\s*mine \(1 of 50\)\s*</p>", page)
    assert page.count('<span class="tag error">under a tenth</span>') == 1


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"fraction": 0.3}, "the best 30 % of the scored pairs, equal scores in the order of their ids"),
        ({"threshold": 0.5}, "every pair with a score of at least 0.5"),
        (
            {"group_by": "row", "per_group": 2, "by": "text_chars"},
            "at most 2, the best, of the scored pairs of each record by text length, equal values in the order of "
            "their ids",
        ),
        (
            {"fraction": 0.1, "temperature": 2.0, "seed": 4, "min_width": 1000, "max_chars": 80},
            "a draw of 10 % of the pairs with images at least 1,000 pixels wide and texts of at most 80 characters, "
            "weighted by score at temperature 2, seed 4",
        ),
        (
            {"any": [{"fraction": 0.5, "by": "random"}, {"all": [{"threshold": 1}, {"min_height": 9}]}]},
            "what at least one of these rules keeps: (1) a random 50 % of the scored pairs, seed 0; "
            "(2) [what every one of these rules keeps: (1) every pair with a score of at least 1; "
            "(2) the pairs with images at least 9 pixels high]",
        ),
    ],
)
def test_rule_is_told_in_words(keys, text):
    assert rule_text(Rule.from_keys(keys)) == text
