"""The curation experiment from captioned images to its table, on a few made scenes and with few steps."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from python_script.curation_experiment import main
from src.config import load_config
from src.dataset.records import DataSpec
from src.dataset.scene_text import captions
from src.dataset.scenes import make_scene, png_bytes, scene_rng
from src.errors import JobError
from src.experiment.clip_curation import ClipCuration, ClipCurationConfig, captioned_images
from src.experiment.curation import ARMS
from tests.tiny_clip import save_tiny_clip

ROOT = Path(__file__).resolve().parents[2]


def scene_rows(seeds: range) -> list[dict]:
    rows = []
    for seed in seeds:
        scene = make_scene(seed, size=112)
        image = {"bytes": png_bytes(scene.image), "path": None}
        texts = captions(scene.facts, scene_rng(seed), 3)
        rows.append({"image": image, "captions": texts, "label": scene.facts.kind, "filename": f"{seed}.png"})
    return rows


def write_rows(path: Path, rows: list[dict]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def write_scenes(path: Path, seeds: range) -> str:
    return write_rows(path, scene_rows(seeds))


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


def config_of(keys: list[str]) -> ClipCurationConfig:
    return load_config(ClipCurationConfig, ROOT / "config" / "nano" / "curation_experiment.yaml", keys)


def test_the_whole_experiment(keys, monkeypatch, capsys, caplog):
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
        assert {task: counts["records"] for task, counts in entry["counts"].items()} == {
            "zero_shot": 20,
            "retrieval": 20,
        }
        assert not entry["counts"]["retrieval"]["errors"]
    assert (results / "chart.png").stat().st_size > 10_000
    assert "highest score" in (results / "table.md").read_text()
    assert "50% damaged, score above random: zero-shot top-1" in said
    judged = json.loads((results / "results.json").read_text())["judge"]
    assert [one["share"] for one in judged] == [0.5]
    assert judged[0]["auc"] > 0.8

    ids = {row["id"] for row in pq.read_table(out / "learn.parquet").to_pylist()}
    assert ids.isdisjoint(row["id"] for row in pool)
    assert len(ids) + len(pool) == 70

    runs = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}
    lost = next(path for path in runs if "score" in path.name)
    lost.write_text(lost.read_text()[:-40])  # what a crash of the machine may leave
    with caplog.at_level(logging.WARNING):
        main(config)
    assert f"{lost} does not read" in caplog.text
    assert {path.name for path, when in runs.items() if path.stat().st_mtime_ns != when} == {lost.name}
    again = json.loads((results / "results.json").read_text())["trainings"]
    assert again == trainings, "a training repeated gives the same figures"
    with pytest.raises(JobError, match=r"is of other settings: train.run_duration \(was 2, now 3\)"):
        main(config_of([*keys, "train.run_duration=3"]))

    scores = out / "scores-0.5"
    measures = list(scores.glob("measures-*.parquet"))
    other = save_tiny_clip(out / "other_clip", seed=1)
    found = ClipCuration(config_of([*keys, f"judges.clip={other}"])).values(scores)["clip_score"]
    assert len(measures) == 1
    assert Path(found) not in measures
    assert pq.read_table(found)["clip_score"] != pq.read_table(measures[0])["clip_score"]


def test_what_is_not_there_is_named(keys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(JobError, match="no 'best'; known: everything, random"):
        main(config_of([*keys, "arms=[best]"]))
    with pytest.raises(JobError, match="seeds: 2 is given twice"):
        main(config_of([*keys, "seeds=[2,1,2]"]))
    with pytest.raises(JobError, match="too few clean captions are left"):
        main(config_of([*keys, "shares=[0.9]"]))
    with pytest.raises(JobError, match=r"judges.scorer: no such model: nowhere; script/curation_experiment.sh"):
        main(config_of([*keys, f"output_dir={tmp_path}", "judges.scorer=nowhere"]))


def test_records_of_one_image_are_one_whatever_names_them(tmp_path, capsys):
    first, second, third = scene_rows(range(3))
    apart = [{**row, "captions": [text]} for row in (first, second) for text in row["captions"]]
    blank, broken = {**third, "captions": [" "]}, {**third, "image": {"bytes": b"no image", "path": None}}
    taken = {**third, "captions": ["an id that is another image's"], "filename": "0.png"}
    later = {**third, "captions": ["of the image whose first text is blank"]}
    path = write_rows(tmp_path / "apart.parquet", [blank, *apart, apart[0], broken, taken, later])
    spec = DataSpec(path, image_column="image", text_column="captions", source_column="label", id_column="filename")
    rows = captioned_images(spec)
    assert [row["id"] for row in rows] == ["2.png", "0.png", "1.png"]
    assert [row["captions"] for row in rows] == [
        [taken["captions"][0], later["captions"][0]], first["captions"], second["captions"]]  # fmt: skip
    assert [row["image"]["bytes"] for row in rows] == [row["image"]["bytes"] for row in (third, first, second)]
    said = "11 records = 9 usable of 3 images + 2 errors (empty_text 1, unreadable_image 1)"
    assert said in capsys.readouterr().out
    unnamed = captioned_images(replace(spec, id_column=None))
    assert [row["captions"] for row in unnamed] == [row["captions"] for row in rows]
    with pytest.raises(JobError, match="1 records = 0 usable of 0 images"):
        captioned_images(replace(spec, path=write_rows(tmp_path / "bad.parquet", [broken])))


def test_data_are_whole_or_made_anew(tmp_path, monkeypatch):
    rows = scene_rows(range(100, 103))
    for row, name in zip(rows, ("a/b.png", "a_b.png", "c.png"), strict=True):
        row |= {"filename": name, "label": "airport"}
    given = [f"data.captioned={write_scenes(tmp_path / 'train.parquet', range(12))}", "data.set=scenes",
             f"data.test={write_rows(tmp_path / 'test.parquet', rows)}", f"output_dir={tmp_path / 'out'}"]  # fmt: skip
    out = tmp_path / "out"

    def prepare(*more: str) -> dict[str, int]:
        """Prepare, and return when each file was written."""
        ClipCuration(config_of([*given, "train.model.model_name=none", *more])).prepare()
        return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}

    write_bytes = Path.write_bytes

    def killed(path: Path, content: bytes) -> int:
        if path.stem.startswith("0000002"):
            raise KeyboardInterrupt
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare("shares=[0.3]")
    assert not (out / "test").exists()
    monkeypatch.undo()
    first = prepare("shares=[0.3]")
    images = sorted((out / "test" / "scenes_Image" / "airport").iterdir())
    assert [path.read_bytes() for path in images] == [row["image"]["bytes"] for row in rows]
    assert prepare("shares=[0.3]") == first, "what is there is not written again"
    images[1].unlink()
    assert {"pool-0.3.parquet", *(str(path.relative_to(out)) for path in images)} < {*prepare("shares=[0.3]")}
    (out / "pool-0.3.parquet").write_bytes(b"half")
    pools = [prepare("shares=[0.6,0.3]"), prepare("shares=[0.3]")]
    assert pools[0] == pools[1]
    assert {"pool-0.3.parquet", "pool-0.6.parquet"} < {*pools[0]}
    assert pq.read_metadata(out / "pool-0.3.parquet").num_rows == pq.read_metadata(out / "pool-0.6.parquet").num_rows
    write_scenes(tmp_path / "train.parquet", range(13))
    with pytest.raises(JobError, match=r"holds other data: input.captioned.bytes \(was .*Use a new output_dir"):
        prepare("shares=[0.3]")
