"""Zero-shot metrics against fixtures and a slow twin, names and prompts of sets, and the program on made scenes."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose

from python_script import make_scenes
from python_script.evaluation import clip_classification
from src.errors import JobError
from src.evaluation.class_sets import find_sets, prompts_of, read_set, readable, set_name
from src.evaluation.features import exact_unit
from src.evaluation.zero_shot import class_vectors, classify, evaluate_class_folders, measure
from src.model.clip import OpenClip, load_clip
from tests.tiny_clip import save_tiny_clip

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "metrics" / "zeroshot.json").read_text())


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes.main(["--output", str(folder), "--count", "40", "--size", "56", "--class-folders"])
    return folder / "scenes_Image"


@pytest.mark.parametrize("problem", FIXTURE["problems"], ids=lambda problem: problem["name"])
def test_metrics_are_those_of_the_fixtures(problem):
    labels, correct = np.array(problem["labels"]), problem["correct"]
    classes = class_vectors(torch.tensor(problem["text_features"], dtype=torch.float64))
    images = exact_unit(torch.tensor(problem["image_features"], dtype=torch.float64))
    predictions, places = classify(images, classes, labels)
    found = measure(predictions, places, labels, len(classes))
    assert predictions.tolist() == correct["predictions"]
    assert found["confusion"] == correct["confusion"]
    for name in ("top1", "top5", "mean_per_class_recall"):
        assert found["metrics"][name]["value"] == pytest.approx(correct[name], abs=1e-9)
    for name, recall in zip(problem["class_names"], found["recall"], strict=True):
        assert recall["value"] == pytest.approx(correct["per_class_recall"][name], abs=1e-9)


@pytest.mark.parametrize("case", FIXTURE["prompts"], ids=lambda case: case["folder"])
def test_prompts_are_those_of_the_fixtures(case, caplog):
    assert set_name(case["folder"]) == case["set"]
    assert prompts_of(set_name(case["folder"])).of(case["class_name"]) == case["correct"]
    assert not caplog.records


def test_each_template_is_normalised_before_the_mean():
    problem = FIXTURE["problems"][0]
    features = torch.tensor(problem["text_features"], dtype=torch.float64)
    images, labels = exact_unit(torch.tensor(problem["image_features"])), np.array(problem["labels"])
    wrong = classify(images, exact_unit(features.mean(1)), labels)[1]
    assert (wrong == 0).mean() == pytest.approx(problem["if_templates_were_not_normalised_first_top1"])


def test_places_agree_with_a_sorted_matrix_on_ties_and_in_parts(monkeypatch):
    monkeypatch.setattr("src.evaluation.zero_shot._CHUNK", 7)
    rng = np.random.default_rng(0)
    images = exact_unit(torch.from_numpy(rng.integers(-1, 2, (100, 4)).astype(float)))
    classes = exact_unit(torch.from_numpy(rng.integers(-1, 2, (9, 4)).astype(float)))
    labels = rng.integers(9, size=100)
    order = np.argsort(-(images.double().numpy() @ classes.double().numpy().T), axis=1, kind="stable")
    predictions, places = classify(images, classes, labels)
    assert predictions.tolist() == order[:, 0].tolist()
    assert places.tolist() == [row.tolist().index(label) for row, label in zip(order, labels, strict=True)]


def test_an_unusable_image_is_wrong_and_in_no_cell_of_the_confusion():
    found = measure(np.array([0, -1, 1]), np.array([0, 9, 0]), np.array([0, 0, 1]), 5)
    assert found["metrics"]["top1"]["value"] == pytest.approx(2 / 3)
    assert found["metrics"]["mean_per_class_recall"]["value"] == pytest.approx(0.75)
    assert [recall["value"] for recall in found["recall"]] == [0.5, 1, None, None, None]
    assert np.sum(found["confusion"]) == 2


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("BareLand", "bare land"), ("footballField", "football field"), ("golf_course", "golf course"),
        ("Storage_Tanks", "storage tanks"), ("RVPark", "RV park"), ("AIRPORT", "airport"), ("Airport", "airport"),
        ("multi-unit_residential", "multi-unit residential"), ("_", "_"),
    ],
)  # fmt: skip
def test_class_names_are_readable(folder, words):
    assert readable(folder) == words


def test_a_set_names_what_splitting_cannot(caplog):
    assert prompts_of("eurosat").name("SeaLake") == "sea or lake"
    assert prompts_of("rsicb256").name("parkinglot") == "parking lot"
    assert prompts_of("rsicb256").name("green_farmland") == "green farmland"
    assert not caplog.records


def test_an_unknown_set_gets_the_general_templates_and_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert prompts_of("elsewhere").of("port") == ["a satellite photo of port.", "a satellite image of port"]
    assert "'elsewhere'" in caplog.text


def test_templates_can_be_given_as_text_or_file(tmp_path):
    assert prompts_of("surface", ["{} from above"]).of("a {} in braces") == ["a {} in braces from above"]
    mine = tmp_path / "mine.yaml"
    mine.write_text("templates: ['x {}']\nsets: {My_Set: {templates: ['y {}'], names: {a: b}}}")
    assert prompts_of("my_set", [str(mine)]).of("z") == ["y z"]
    assert prompts_of("my_set", [str(mine)]).name("A") == "b"
    mine.with_name("bad.yaml").write_text("sets: [a]")
    for wrong in (["no class"], ["{} {}"], [str(tmp_path / "bad.yaml")], [str(tmp_path / "none.yaml")]):
        with pytest.raises(JobError):
            prompts_of("surface", wrong)


def test_sets_are_found_by_full_name_and_twins_are_refused(tmp_path):
    for name in ("SkyScript_cls_Image", "roof_shape_Image", "roof_x_Image", "plain"):
        (tmp_path / "val" / name / "a").mkdir(parents=True)
    assert [set_name(path) for path in find_sets([tmp_path / "val"])] == ["skyscript_cls", "roof_shape", "roof_x"]
    assert find_sets([tmp_path / "val" / "plain"]) == [tmp_path / "val" / "plain"]
    assert len(find_sets([tmp_path / "val", tmp_path / "val" / "roof_x_Image"])) == 3
    (tmp_path / "other" / "roof_shape_Image").mkdir(parents=True)
    with pytest.raises(JobError, match="both called 'roof_shape'"):
        find_sets([tmp_path / "val", tmp_path / "other"])
    with pytest.raises(JobError, match="no images"):
        read_set(tmp_path / "val" / "plain")
    with pytest.raises(JobError, match="no class folders"):
        read_set(tmp_path / "val" / "plain" / "a")


def test_class_folders_are_evaluated_like_a_plain_loop(clip, scenes, tmp_path):
    """The twin opens, encodes and compares one image at a time."""
    folder = shutil.copytree(scenes, tmp_path / "scenes_Image")
    first = sorted(folder.iterdir())[0]
    (first / "broken.png").write_bytes(b"no image")
    (first / "notes.txt").write_text("not counted")
    (first / ".ipynb_checkpoints").mkdir()
    shutil.copy(next(first.glob("*.png")), first / ".ipynb_checkpoints" / "x.png")
    result = evaluate_class_folders(clip, folder, batch_size=7, workers=3, progress=False)
    classes = sorted(path.name for path in folder.iterdir())
    vectors = []
    for name in classes:
        words = name.replace("_", " ")
        prompts = [
            clip.text_features([f"a satellite photo of {words}."]),
            clip.text_features([f"a satellite image of {words}"]),
        ]
        vectors.append(torch.nn.functional.normalize(torch.stack(prompts).mean(0), dim=-1)[0])
    right = n = 0
    for label, name in enumerate(classes):
        for path in (folder / name).glob("*.png"):
            n += 1
            if path.name != "broken.png":
                image = clip.image_features(clip.preprocess(Image.open(path).convert("RGB"))[None])[0]
                right += int((torch.stack(vectors) @ image).argmax()) == label
    assert 0 < right < n == 41
    assert result.metrics["top1"]["value"] == pytest.approx(right / n)
    assert result.counts["records"] == 41
    assert result.counts["ok"] == 40
    assert result.counts["errors"] == {"unreadable_image": 1}
    assert result.counts["other_files"] == 1
    assert result.details["unusable"][0]["path"] == f"{first.name}/broken.png"
    assert result.details["classes"][0]["name"] == first.name.replace("_", " ")


def test_the_program_writes_a_result_and_a_picture_and_keeps_features(tiny, scenes, tmp_path, capsys, monkeypatch):
    flags = ["--model_path", str(tiny), "--image_root", str(scenes.parent), "--output_path", str(tmp_path / "out"),
             "--cache", str(tmp_path / "cache"), "--batch_size", "16", "--workers", "2"]  # fmt: skip
    clip_classification.main(flags)
    (path,) = (tmp_path / "out").glob("*__scenes__zero_shot.json")
    first = json.loads(path.read_text())
    assert first["schema"] == 1
    assert first["set"] == "scenes"
    assert "40 ok + 0 errors = 40 records" in capsys.readouterr().out
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "https://cdn" not in path.with_suffix(".html").read_text()
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) == 2

    def unused(self, pixel_values):
        raise AssertionError("the features are kept")

    monkeypatch.setattr("src.model.clip.TransformersClip._encode_images", unused)
    clip_classification.main([*flags, "--picture"])
    again = json.loads(path.read_text())
    assert again["metrics"] == first["metrics"]
    image = next(scenes.rglob("*.png"))
    image.write_bytes(image.read_bytes() + b"\0")  # another size: another file
    with pytest.raises(AssertionError, match="kept"):
        clip_classification.main(flags)


def test_a_fingerprint_tells_models_apart_and_holds_in_another_process(clip, tiny, tmp_path):
    assert load_clip(tiny, device="cpu").fingerprint() == clip.fingerprint()
    assert load_clip(tiny, device="cpu", dtype="bfloat16").fingerprint() != clip.fingerprint()
    assert load_clip(save_tiny_clip(tmp_path, seed=1), device="cpu").fingerprint() != clip.fingerprint()
    transform = Compose([read_set, open_clip.image_transform(32, is_train=False)])  # a function prints its address
    settings = OpenClip("x", clip.model, transform, open_clip.get_tokenizer("RN50"), {})._settings()
    assert "read_set" in settings
    assert "CenterCrop" in settings
    assert "0x" not in settings


def test_templates_of_some_sets_alone_will_do(tiny, scenes, tmp_path, capsys):
    flags = ["--model_path", str(tiny), "--image_root", str(scenes), "--cache", "", "--picture", "--output",
             str(tmp_path / "out"), "--templates", str(tmp_path / "mine.yaml")]  # fmt: skip
    mine = tmp_path / "mine.yaml"
    mine.write_text("sets: {scenes: {templates: ['{} from above']}}")
    clip_classification.main(flags)
    (path,) = (tmp_path / "out").glob("*.json")
    assert json.loads(path.read_text())["settings"]["templates"] == ["{} from above"]
    other = tmp_path / "other.yaml"
    other.write_text("sets: {aid: {templates: ['{} from above']}}")
    with pytest.raises(SystemExit):
        clip_classification.main([*flags[:-1], str(other)])
    assert "no templates for the set 'scenes'" in capsys.readouterr().err


def test_the_program_names_what_is_wrong(tiny, scenes, tmp_path, capsys):
    for flags, said in (
        (["--image_root", str(tmp_path / "none")], "no such image folder"),
        (["--image_root", str(scenes), "--templates", "no class"], "in the place of the class"),
        (["--image_root", str(scenes), "--model_path", str(tmp_path)], "no CLIP model"),
    ):
        with pytest.raises(SystemExit) as stop:
            clip_classification.main(["--cache", "", *flags])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
