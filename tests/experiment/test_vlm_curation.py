"""The curation experiment of fine-tuning, from made scenes to its table, with a few questions and steps."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from python_script.vlm_curation_experiment import main
from src.config import load_config
from src.errors import JobError
from src.experiment.vlm_curation import VlmCuration, VlmCurationConfig
from src.training.vlm import VlmTrainer

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["yes_no", "count", "colour", "relation", "scene"]


def config_of(out: Path, *keys: str) -> VlmCurationConfig:
    given = [
        "data.pool.count=20", "data.learn.count=6", "data.test.count=4", "data.size=56", f"output_dir={out}",
        "judges.scorer=assets/nano/scorer", "seeds=[1]", "train.run_duration=2", "train.device_train_batch_size=4",
        "train.evaluation.max_new_tokens=3", "train.data.num_workers=0", "arms=[random,oracle]",
    ]  # fmt: skip
    return load_config(VlmCurationConfig, ROOT / "config" / "nano" / "vlm_curation_experiment.yaml", [*given, *keys])


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """The experiment's folder, its data written."""
    folder = tmp_path_factory.mktemp("vlm_curation")
    VlmCuration(config_of(folder)).prepare()
    return folder


def test_the_data_are_of_different_scenes_and_say_what_is_wrong(out):
    names = ("pool-0.6", "test", "learn")
    pool, test, learn = (pq.read_table(out / f"{name}.parquet").to_pylist() for name in names)
    assert [len(rows) for rows in (pool, test, learn)] == [100, 20, 30]
    assert Counter(row["about"] for row in pool) == dict.fromkeys(KINDS, 20)
    assert Counter(row["kinds"][0] for row in pool) == {"clean": 40, "wrong_answer": 60}
    images = [{row["image"]["bytes"] for row in rows} for rows in (pool, test, learn)]
    assert [len(some) for some in images] == [20, 4, 6]
    assert len(set.union(*images)) == 30
    for row in learn:
        assert 1 <= len(row["rejected"]) <= 3
        assert row["chosen"] not in row["rejected"]
        assert {*row["kinds"]} == {row["source"]}


def test_the_whole_experiment_of_answers(out, monkeypatch):
    monkeypatch.chdir(ROOT)
    evaluate, evaluated = VlmTrainer.evaluate, []

    def counted(self: VlmTrainer, *args, **kwargs) -> dict[str, float]:
        evaluated.append(self.state.global_step)
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(VlmTrainer, "evaluate", counted)
    main(config_of(out))
    assert evaluated == [2, 2], "the model that is best because it is the last is measured once"
    results = json.loads((out / "results" / "results.json").read_text())
    random, oracle = results["trainings"]
    assert (random["arm"], oracle["arm"]) == ("random", "oracle")
    assert oracle["kinds"] == {"clean": 30}
    assert random["pairs"] == 30
    for entry in (random, oracle):
        assert entry["counts"] == {"held_out": dict.fromkeys(KINDS, 4)}
        each = [entry[f"accuracy_{kind}"] for kind in KINDS]
        assert entry["accuracy"] == pytest.approx(sum(each) / 5)
    kept = pq.read_table(out / "runs" / "0.6-random-1-subset" / "subset_ids.parquet")["id"].to_pylist()
    assert Counter(name.rpartition("-")[2] for name in kept) == dict.fromkeys(KINDS, 6), "rules cut within each kind"
    (judged,) = results["judge"]
    assert {*judged["auc_by_source"]} == {*KINDS}
    assert "| 60% | clean ones only | 30 | 100.0 % |" in (out / "results" / "table.md").read_text()
    before = (out / "runs" / "0.6-oracle-1.json").stat().st_mtime_ns
    main(config_of(out))
    assert (out / "runs" / "0.6-oracle-1.json").stat().st_mtime_ns == before
    with pytest.raises(JobError, match=r"holds other data: pool.seed \(was 31, now 41\)"):
        main(config_of(out, "data.pool.seed=41"))


def test_the_score_model_is_asked_for(tmp_path, out):
    with pytest.raises(
        JobError, match=r"judges.scorer: no such model: .*; script/vlm_curation_experiment.sh trains it"
    ):
        main(config_of(out, "judges.scorer=nowhere"))
    with pytest.raises(JobError, match="no 'clip_score'; known: everything, random, length, score, oracle"):
        main(config_of(tmp_path, "arms=[clip_score]"))
