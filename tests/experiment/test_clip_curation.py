"""The curation experiment from captioned images to its table, on a few made scenes and with few steps."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from python_script.curation_experiment import main
from src.config import load_config
from src.dataset.scene_text import captions
from src.dataset.scenes import make_scene, png_bytes, scene_rng
from src.errors import JobError
from src.experiment.clip_curation import ARMS, ExperimentConfig
from tests.tiny_clip import save_tiny_clip

ROOT = Path(__file__).resolve().parents[2]


def write_scenes(path: Path, seeds: range) -> str:
    rows = []
    for seed in seeds:
        scene = make_scene(seed, size=112)
        image = {"bytes": png_bytes(scene.image), "path": None}
        texts = captions(scene.facts, scene_rng(seed), 3)
        rows.append({"image": image, "captions": texts, "label": scene.facts.kind, "filename": f"{seed}.png"})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("experiment")
    start = save_tiny_clip(folder / "clip")
    return [
        f"data.captioned={write_scenes(folder / 'train.parquet', range(70))}",
        f"data.test={write_scenes(folder / 'test.parquet', range(100, 120))}",
        "data.set=scenes", "judges.scorer=assets/nano/scorer", f"judges.clip={start}",
        f"train.model.model_name={start}", "shares=[0.5]", "seeds=[1]", f"output_dir={folder / 'out'}",
        "train.run_duration=2", "train.device_train_batch_size=8", "train.scheduler.t_warmup=0",
        "train.data.num_workers=0",
    ]  # fmt: skip


def config_of(keys: list[str]) -> ExperimentConfig:
    return load_config(ExperimentConfig, ROOT / "config" / "nano" / "curation_experiment.yaml", keys)


def test_the_whole_experiment(keys, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    config = config_of(keys)
    main(config)
    said = capsys.readouterr().out
    out, results = Path(config.output_dir), Path(config.results_dir)
    trainings = json.loads((results / "results.json").read_text())["trainings"]
    of_arm = {entry["arm"]: entry for entry in trainings}
    assert list(of_arm) == list(ARMS)
    pool = pq.read_table(out / "pool-0.5.parquet").to_pylist()
    everything = sum(len(row["captions"]) for row in pool)
    assert of_arm["everything"]["pairs"] == everything
    assert of_arm["everything"]["clean"] == pytest.approx(0.5, abs=0.01)
    assert {entry["pairs"] for arm, entry in of_arm.items() if arm != "everything"} == {int(0.3 * everything)}
    assert of_arm["oracle"]["kinds"] == {"clean": of_arm["oracle"]["pairs"]}
    # the embedded score model knows made scenes, so that its part must be far cleaner than chance
    assert of_arm["score"]["clean"] > 0.7 > of_arm["random"]["clean"]
    for entry in trainings:
        assert 0 <= entry["top1"] <= 1
        assert 0 < entry["mean_recall"] <= 1
    assert (results / "chart.png").stat().st_size > 10_000
    assert "highest score" in (results / "table.md").read_text()
    assert "50% damaged, score above random: zero-shot top-1" in said

    ids = {row["id"] for row in pq.read_table(out / "learn.parquet").to_pylist()}
    assert ids.isdisjoint(row["id"] for row in pool)
    assert len(ids) + len(pool) == 70

    runs = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}
    lost = next(path for path in runs if "score" in path.name)
    lost.unlink()
    main(config)
    assert {path.name for path, when in runs.items() if path.stat().st_mtime_ns != when} == {lost.name}
    again = json.loads((results / "results.json").read_text())["trainings"]
    assert again == trainings, "a training repeated gives the same figures"
    with pytest.raises(JobError, match=r"is of other settings: train.run_duration \(was 2, now 3\)"):
        main(config_of([*keys, "train.run_duration=3"]))


def test_what_is_not_there_is_named(keys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(JobError, match="no 'best'; known: everything, random"):
        main(config_of([*keys, "arms=[best]"]))
    with pytest.raises(JobError, match="too few clean captions are left"):
        main(config_of([*keys, "shares=[0.9]"]))
    with pytest.raises(JobError, match=r"judges.scorer: no such model: nowhere; script/curation_experiment.sh"):
        main(config_of([*keys, f"output_dir={tmp_path}", "judges.scorer=nowhere"]))
