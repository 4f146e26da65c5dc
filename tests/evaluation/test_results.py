"""Results are written whole, told apart, and never averaged over members that are missing."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from python_script.evaluation import result_table
from src.errors import JobError
from src.evaluation.result_table import markdown, short_names, tables_of
from src.evaluation.results import Result, read_results, resampled_ratios, share


def result(model: str, name: str, top1: float | None = 0.5, task: str = "zero_shot") -> Result:
    metric = share(round(100 * top1), 100) if top1 is not None else {"value": None, "low": None, "high": None, "n": 100}
    counts = {"records": 100, "ok": 100, "errors": {}}
    return Result(task, name, model, {"top1": metric, "top5": share(90, 100)}, counts)


def test_results_are_read_as_they_were_written(tmp_path):
    written = result("org/Qwen2.5-CLIP", "aid")
    path = written.write(tmp_path)
    assert read_results([tmp_path]) == [written]
    assert {"schema", "versions", "created"} <= json.loads(path.read_text()).keys()
    assert len({result(model, "aid").write(tmp_path) for model in ("a/b", "a_b", "a.1", "a.2", "a b")}) == 5
    (tmp_path / "other.json").write_text('{"some": "file"}')
    assert len(read_results([tmp_path])) == 6
    assert read_results([tmp_path, tmp_path]) == read_results([tmp_path])


def test_a_result_of_other_data_is_not_replaced(tmp_path, monkeypatch):
    def of(**settings) -> Result:
        return replace(result("m", "test"), settings=settings)

    monkeypatch.chdir(tmp_path)
    path = of(data="RSICD/test.csv", text_column="title", batch_size=8).write("out")
    written = path.read_bytes()
    for other in ({"data": "RSITMD/test.csv"}, {"data": "RSICD/test.csv", "text_column": "raw"}):
        with pytest.raises(JobError, match=r"other data .* give another --output, or a --name"):
            of(**other).write("out")
    assert path.read_bytes() == written
    of(data=str(tmp_path / "RSICD" / "test.csv"), text_column="title", batch_size=9).write("out")  # the same file
    assert path.read_bytes() != written


def test_doubles_and_unknown_schemas_are_refused(tmp_path):
    path = result("m", "aid").write(tmp_path / "a")
    result("m", "aid").write(tmp_path / "b")
    with pytest.raises(JobError, match="both zero_shot of m on aid"):
        read_results([tmp_path])
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(JobError, match="schema 2"):
        read_results([tmp_path / "a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match="no results"):
        read_results([tmp_path / "empty"])


def test_an_average_is_refused_when_a_member_is_missing():
    results = [result("full", "aid", 0.4), result("full", "eurosat", 0.6), result("part", "aid", 0.9),
               result("undefined", "aid", 0.1), result("undefined", "eurosat", None)]  # fmt: skip
    (table,) = tables_of(results, ["top1"])
    assert table.average("full") == pytest.approx(0.5)
    assert table.average("part") is table.average("undefined") is None
    assert table.missing("part") == table.missing("undefined") == ["eurosat"]
    assert table.models == ("full", "part", "undefined")
    text = markdown([table])
    assert "| full | 40.0 | **60.0** | **50.0** |" in text
    assert "| part | **90.0** | — | — |" in text
    assert "part lacks eurosat; undefined lacks eurosat" in text
    (table,) = tables_of(results, ["top1"], ["aid"])
    assert table.average("part") == pytest.approx(0.9)
    for wrong in ({"metrics": ["f1"]}, {"sets": ["x"]}):
        with pytest.raises(JobError):
            tables_of(results, **wrong)


def test_tasks_are_kept_apart():
    results = [result("m", "aid"), result("m", "rsicd", task="retrieval")]
    assert [(t.task, t.metric, t.sets) for t in tables_of(results, ["all"])] == [
        ("zero_shot", "top1", ("aid",)), ("zero_shot", "top5", ("aid",)),
        ("retrieval", "top1", ("rsicd",)), ("retrieval", "top5", ("rsicd",))]  # fmt: skip


def test_short_names_tell_models_apart():
    models = ["output/a/final", "output/b/final", "hub/x", "x"]
    assert list(short_names(models).values()) == ["a/final", "b/final", "hub/x", "x"]


def test_resampling_clusters_is_wider_than_resampling_their_members():
    """Of 100 images with five captions each, all hit or all missed: the spread is that of 100 draws, not of 500."""
    hits = 5.0 * (np.arange(100) % 2)[:, None]
    spread = resampled_ratios(hits, np.full((100, 1), 5.0)).std()
    assert spread == pytest.approx(0.05, rel=0.1)


def test_the_program_writes_all_forms(tmp_path, capsys):
    for model in ("output/a/final", "output/b/final"):
        for name in ("aid", "eurosat")[: 1 + (model == "output/a/final")]:
            result(model, name).write(tmp_path / "in")
    result_table.main([str(tmp_path / "in"), "--output", str(tmp_path / "out")])
    assert "| output/b/final | **50.0** | — | — |" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    average = {row["model"]: (row["value"], row["missing"]) for row in rows if row["set"] == "average"}
    assert average == {"output/a/final": ("0.5", ""), "output/b/final": ("", "eurosat")}
    page = (tmp_path / "out" / "results.html").read_text()
    assert "b/final has no value on eurosat" in page
    assert (tmp_path / "out" / "results.png").read_bytes()[:4] == b"\x89PNG"
