"""One record of each group of alike ones, and languages: by hand; test_rules.py has them beside all other keys."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from python_script.select_subset import DEFAULT_CONFIG, SelectConfig, main
from src.config import load_config
from src.curation.rules import Rule
from src.curation.select import read_facts, select_subset
from src.errors import JobError
from tests.curation.score_tables import kept, pair, write_pictures, write_scores


def test_of_records_that_share_a_value_the_best_passes_with_all_its_captions(tmp_path):
    scores = [1.0, 9.0, 8.0, 7.0, 9.0, 0.0, 2.0, 2.0, 5.0, 5.0]
    rows = [pair(n // 2, score, text_index=n % 2, id=f"{n // 2}#{n % 2}") for n, score in enumerate(scores)]
    looks = [7, 7, 7, None, None]
    file = tmp_path / "file.parquet"
    columns = {"look": [looks[row["row"]] for row in rows], "language": ["en", "en", *["de"] * 8]}
    pq.write_table(pa.table({"id": [row["id"] for row in rows], **columns}), file)
    keys = {"unique": "look", "scores_from": str(file)}
    rest = ["3#0", "3#1", "4#0", "4#1"]  # of no group
    assert kept(tmp_path / "a", rows, **keys) == ["0#0", "0#1", *rest]  # 0#1 has the score of 2#0 and the lower id
    assert kept(tmp_path / "b", rows[::-1], parts=5, **keys) == ["0#0", "0#1", *rest]
    assert kept(tmp_path / "c", rows, language="de", **keys) == ["2#0", "2#1", *rest]  # among those that pass
    assert kept(tmp_path / "d", rows, fraction=0.5, **keys) == ["0#1", "4#0", "4#1"]  # of six pairs, not of ten
    assert kept(tmp_path / "e", rows, all=[{"fraction": 0.5}, keys]) == ["0#1", "4#0"]
    with pytest.raises(JobError, match="has no column phash_group; it has id, look, language"):
        kept(tmp_path / "f", rows, unique="phash_group", scores_from=str(file))


def test_program_finds_the_measures_beside_the_scores(tmp_path, capsys):
    data = write_pictures(tmp_path / "data", [f"caption {n}" for n in range(6)])
    rows = [pair(n, float(n), id=f"{n}") for n in range(6)]
    job = write_scores(tmp_path / "job", rows, data)
    words = [f"scores_dir={job}", "fraction=null", "unique=phash_group", "language=[en, zh]"]
    with pytest.raises(JobError, match="unique needs scores_from"):
        main(load_config(SelectConfig, DEFAULT_CONFIG, words))
    columns = {"phash_group": [0, 0, 2, 2, 2, None], "language": ["en", "zh", "en", "zh", "fr", "en"]}
    pq.write_table(pa.table({"id": [row["id"] for row in rows], **columns}), job / "measures.parquet")
    main(load_config(SelectConfig, DEFAULT_CONFIG, words))
    assert pq.read_table(job / "subset_ids.parquet")["id"].to_pylist() == ["1", "3", "5"]
    assert read_facts(job / "subset_ids.parquet")["scores_from"] == str(job / "measures.parquet")
    said = "the pairs with language en or zh of the best record of each phash_group"
    assert said in (job / "report.html").read_text(encoding="utf-8")
    main(load_config(SelectConfig, DEFAULT_CONFIG, [words[0], "fraction=0.5"]))
    assert "scores_from" not in read_facts(job / "subset_ids.parquet")
    main(load_config(SelectConfig, DEFAULT_CONFIG, [*words[:2], "any=[{fraction: 0.2}, {all: [{language: fr}]}]"]))
    assert pq.read_table(job / "subset_ids.parquet")["id"].to_pylist() == ["4", "5"]
    capsys.readouterr()


def test_measures_of_other_data_and_pairs_without_a_row_are_refused(tmp_path):
    rows = [pair(n, float(n)) for n in range(3)]
    job = write_scores(tmp_path / "job", rows)
    file = tmp_path / "measures.parquet"

    def keep(ids: list[str], measured: str, **keys) -> int:
        facts = {"measures": "{}", "input": json.dumps({"name": measured})}
        columns = {"id": ids, "look": [None] * len(ids), "language": [None, "en", "en"][: len(ids)]}
        table = pa.table(columns, schema=pa.schema({"id": "string", "look": "int64", "language": "string"}))
        pq.write_table(table.replace_schema_metadata(facts), file)
        return select_subset(job, tmp_path / "out", Rule.from_keys(keys, str(file))).kept

    ids = [row["id"] for row in rows]
    assert keep(ids, "data.csv", unique="look") == 3  # no value is no reason to refuse
    assert keep(ids, "data.csv", language="en") == 2
    with pytest.raises(JobError, match=r"measured other data than .* input.name \(was other.csv, now data.csv\)"):
        keep(ids, "other.csv", any=[{"language": "en"}, {"fraction": 0.5}])
    for key, value in (("unique", "look"), ("language", "en")):
        with pytest.raises(JobError, match="has no row for 1 scored pairs, pair-00002 the first"):
            keep(ids[:2], "data.csv", **{key: value})
