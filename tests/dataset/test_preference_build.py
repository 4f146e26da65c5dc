import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.dataset.box_groups import BOX_KINDS, box_groups
from src.dataset.preference import find_sets, read_preferences
from src.dataset.preference_build import caption_groups, most_alike, scene_groups, write_groups
from src.dataset.scene_text import CORRUPTIONS, NEAR_MISSES
from src.dataset.scenes import make_scene
from src.rewards.boxes import box_iou, parse_boxes

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [["a red field", "two red fields"], ["a blue lake"], ["a blue lake", "one blue lake"], ["a green wood"]]
LABELS = ["field", "lake", "lake", "wood"]


def test_wrong_captions_are_of_their_kind_and_never_the_images_own():
    for seed in range(20):
        groups = list(caption_groups(TEXTS, LABELS, ("other_class", "same_class", "nearest"), seed, [3, 0, 0, 1]))
        for i, group in enumerate(groups):
            wrong = dict(zip(group["kinds"], group["rejected"], strict=True))
            assert group["chosen"] in TEXTS[i]
            assert not set(wrong.values()) & set(TEXTS[i])
            assert any(
                wrong["other_class"] in own for own, label in zip(TEXTS, LABELS, strict=True) if label != LABELS[i]
            )
        assert groups[0]["rejected"][groups[0]["kinds"].index("nearest")] == "a green wood"
        assert "same_class" not in groups[0]["kinds"]  # the only image of its class
        assert "same_class" not in groups[2]["kinds"]  # its neighbour says the same


def test_without_classes_every_other_image_will_do():
    [first, *_] = caption_groups(TEXTS, [""] * 4, ("other_class", "same_class"), 0)
    assert first["kinds"] == ["other_class"]


def test_most_alike_is_the_obvious_search():
    features = np.random.default_rng(0).normal(size=(50, 8))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    slow = [max((j for j in range(50) if j != i), key=lambda j: unit[i] @ unit[j]) for i in range(50)]
    assert most_alike(features, block=7).tolist() == slow


@pytest.mark.parametrize(("share", "invented"), [(0.0, 3), (1.0, 2)])
def test_scene_groups_are_read_back(tmp_path, share, invented):
    """In alike words, nothing can be invented where the right caption has no extra to name (one of these scenes)."""
    counts = write_groups(scene_groups(range(3), size=112, alike_share=share), tmp_path / "scenes.parquet")
    assert counts == {**dict.fromkeys(CORRUPTIONS, 3), "invented_object": invented}
    items = list(read_preferences(find_sets(str(tmp_path / "scenes.parquet"))[0]))
    assert all(len(item.images) == 1 and item.chosen not in item.rejected for item in items)
    assert [item.kinds for item in items].count(CORRUPTIONS) == invented


@pytest.mark.parametrize("exact", [0.0, 1.0])
def test_worse_boxes_are_of_their_kind_and_miss_by_more_than_the_chosen_ones(exact):
    """Boxes are read as an evaluation reads them; of several in one answer only their number is looked at."""
    seen = set()
    for seed, group in zip(range(40), box_groups(range(40), most=4, exact=exact), strict=True):
        scene = make_scene(seed, size=112)
        things = [tuple(map(float, thing.box)) for thing in scene.objects]
        texts = dict(zip(["chosen", *group["kinds"]], [group["chosen"], *group["rejected"]], strict=True))
        boxes = {kind: parse_boxes(text, size=(112, 112)) for kind, text in texts.items()}
        assert len({len(own) for own in boxes.values()}) == 1
        # Thousandths of 112 pixels tell whole pixels apart.
        boxes = {kind: [tuple(map(round, box)) for box in own] for kind, own in boxes.items()}
        if len(boxes["chosen"]) > 1:
            continue
        best = max(things, key=lambda thing: box_iou(thing, boxes["chosen"][0]))
        missed = {kind: box_iou(best, own[0]) for kind, own in boxes.items()}
        assert missed["chosen"] == 1 if exact else 0.7 <= missed["chosen"] <= 1
        assert all(missed[kind] <= missed["chosen"] - 0.15 for kind in group["kinds"])
        assert 0.35 <= missed.get("near", 0.5) <= 0.75
        assert missed.get("off", 0) <= 0.5
        if "other_thing" in boxes:
            assert boxes["other_thing"][0] in things
        seen |= boxes.keys()
    assert seen == {"chosen", *BOX_KINDS}


def test_few_worse_boxes_are_drawn_from_all_kinds(tmp_path):
    counts = write_groups(box_groups(range(30), most=2), tmp_path / "boxes.parquet")
    assert set(counts) == set(BOX_KINDS)
    items = list(read_preferences(find_sets(str(tmp_path / "boxes.parquet"))[0]))
    assert [len(item.rejected) for item in items] == [2] * 30
    assert list(box_groups([5])) == list(box_groups([5]))


def test_scenes_as_text_have_the_texts_and_no_images(tmp_path):
    drawn, told = (list(scene_groups(range(4), size=112, images=images)) for images in (True, False))
    for with_image, without in zip(drawn, told, strict=True):
        assert {**with_image, "image": None} == without
    write_groups(told, tmp_path / "texts.parquet")
    assert [item.images for item in read_preferences(find_sets(str(tmp_path / "texts.parquet"))[0])] == [()] * 4


def test_near_misses_in_alike_words_are_told_by_what_is_wrong_alone():
    """Length and what is mentioned say nothing: sign tests on 600 scenes stay within three standard errors."""
    longer: dict[str, list[float]] = {kind: [] for kind in NEAR_MISSES}
    for group in scene_groups(range(600), NEAR_MISSES, images=False):
        for kind, text in zip(group["kinds"], group["rejected"], strict=True):
            words, own = len(text.split()), len(group["chosen"].split())
            longer[kind].append(0.5 if words == own else float(words > own))
    for kind, signs in longer.items():
        assert abs(np.mean(signs) - 0.5) < 3 * np.std(signs) / len(signs) ** 0.5 + 1e-9, kind


def test_the_program_makes_a_set_of_a_captioned_table(tmp_path):
    rng = np.random.default_rng(0)
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("filename", "title", "label"))
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
            table.writerow((f"{i}.png", f"{['two', 'three'][i % 2]} red ships near pier {i}", "ab"[i % 2]))
        table.writerow(("missing.png", "a lake", "a"))
    program = [sys.executable, "python_script/build_preference.py", "captions"]
    keys = [f"data.path={tmp_path / 'captions.csv'}", "data.source_column=label", f"output={tmp_path / 'p.parquet'}"]
    done = subprocess.run([*program, *keys], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "6 captioned images, 1 records left out (missing_image 1)" in done.stdout
    items = list(read_preferences(find_sets(str(tmp_path / "p.parquet"))[0]))
    assert len(items) == 6
    assert {"other_class", "same_class", "nearest", "wrong_count", "wrong_colour", "truncated"} <= set(items[0].kinds)
    assert [item.source for item in items] == list("ababab")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["way=dreams", "output=x"], "captions, scenes, boxes"),
        (["scenes", "output=x", "kinds=[nearest]"], "no kind nearest"),
    ],
)
def test_the_program_refuses_by_name(arguments, message):
    program = [sys.executable, "python_script/build_preference.py", *arguments]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
