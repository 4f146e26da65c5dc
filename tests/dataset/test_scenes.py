"""Made scenes: same bytes for a seed, boxes and captions that agree with the facts, corruptions that do not."""

import csv
import hashlib
import io
import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from python_script.make_scenes import main
from src.dataset.scene_canvas import COLOURS
from src.dataset.scene_extras import EXTRAS
from src.dataset.scene_facts import INVERSE, Facts, draw_facts, largest_count
from src.dataset.scene_kinds import EXTENT, KINDS, colours_of
from src.dataset.scene_landmarks import LANDMARKS
from src.dataset.scene_questions import questions
from src.dataset.scene_sprites import SPRITES
from src.dataset.scene_text import CHANGES, CORRUPTIONS, captions, corrupt, plural
from src.dataset.scenes import SEEDS_PER_SET, make_scene, png_bytes, scene_example, scene_rng, scene_seeds

NUMBERS = {"a": {1}, "an": {1}, "one": {1}, "two": {2}, "three": {3}, "four": {4}, "five": {5}, "six": {6},
           "some": {2, 3, 4, 5, 6}, "several": {3, 4, 5, 6}}  # fmt: skip
DIRECTIONS = {"to the left of": "left of", "on the left of": "left of", "on the left side": "left of",
              "to the right of": "right of", "on the right of": "right of", "on the right side": "right of",
              "above": "above", "higher up than": "above", "at the top": "above",
              "below": "below", "further down than": "below", "at the bottom": "below"}  # fmt: skip
NOUNS = {form: noun for noun in {*SPRITES, *LANDMARKS, *EXTRAS} for form in (noun, plural(noun))}
NOUN = "|".join(sorted(NOUNS, key=len, reverse=True))
MENTION = re.compile(rf"(?:\b({'|'.join(NUMBERS)}) )?(?:\b({'|'.join(COLOURS)}) )?\b({NOUN})\b")
PINNED = {
    0: "54cb5749bf8c68263eb175e8531039c5",
    1: "32a21371cafe4baacd8d15ef578e9763",
    2: "ff13b29ad5d564345460ab43edffa592",
    3: "465dc996b42bf11848b63b36674c7f7b",
    12: "05b4e633ba1b5075cc3d097df4c7df5b",
    19: "e129619a4c141239e69056d5083eff9f",
    10000000: "44cbb10bf1612a2ac897fd1879502439",
    1180591620717411303424: "ac51d3033fea4ed15834a3fa5c9cfd51",
}


def generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def lies(text: str, facts: Facts) -> list[str]:
    """What a caption claims against the facts, read off the words without the code that wrote them."""
    text = text.lower().replace(" ,", ",")
    for name in KINDS[facts.kind].names:
        text = text.replace(name, "here")
    found = [(m[1], m[2], NOUNS[m[3]]) for m in MENTION.finditer(text)]
    wrong = [noun for _, _, noun in found if noun not in facts.things]
    for number, colour, noun in found:
        if noun == facts.category:
            wrong += [f"{number} {noun}"] if number and facts.count not in NUMBERS[number] else []
            wrong += [f"{colour} {noun}"] if colour and colour != facts.colour else []
        elif noun == facts.landmark and colour and colour != facts.landmark_colour:
            wrong.append(f"{colour} {noun}")
    said = [DIRECTIONS[d] for d in sorted((d for d in DIRECTIONS if d in text), key=text.index)]
    if said and not wrong:
        first = next(noun for _, _, noun in found if noun in facts.things[:2])
        true = facts.relation if first == facts.category else INVERSE[facts.relation]
        wrong += [said[0]] if said[0] != true else []
    return wrong


@pytest.mark.parametrize("seed", PINNED)
def test_pixels_and_png_bytes_are_pinned(seed):
    assert hashlib.blake2b(png_bytes(make_scene(seed).image), digest_size=16).hexdigest() == PINNED[seed]


def test_png_is_read_back_unchanged():
    image = make_scene(5, size=96).image
    assert image.size == (96, 96)
    assert Image.open(io.BytesIO(png_bytes(image))).tobytes() == image.tobytes()


def test_no_two_scenes_are_alike():
    thumbs = np.stack([np.asarray(make_scene(s).image.reduce(14), np.int16).ravel() for s in range(120)])
    apart = np.abs(thumbs[:, None] - thumbs[None]).mean(-1) + 99 * np.eye(len(thumbs))
    assert apart.min() > 4


def test_seed_alone_decides_the_facts_and_sets_are_disjoint():
    assert all(draw_facts(scene_rng(s)) == make_scene(s, size=56).facts for s in range(20))
    assert set(scene_seeds(0, SEEDS_PER_SET)).isdisjoint(scene_seeds(1, 100))
    for bad in ((-1, 5), (0, 0), (0, SEEDS_PER_SET + 1)):
        with pytest.raises(ValueError, match="seed"):
            scene_seeds(*bad)
    with pytest.raises(KeyError):
        make_scene(0, kind="moon base")


@pytest.mark.parametrize("kind", KINDS)
def test_every_corruption_applies_to_every_kind(kind):
    rules = KINDS[kind]
    assert {*rules.counted} <= {*SPRITES} & {*EXTENT}
    assert {*rules.landmarks} <= {*LANDMARKS}
    assert {*rules.extras} <= {*EXTRAS} - {*rules.counted, *rules.landmarks}
    assert len(rules.counted) > 1 or len(rules.landmarks) > 1
    assert len(rules.extras) > 2
    for season in rules.seasons or ("",):
        for category in (*rules.counted, *rules.landmarks):
            colours = colours_of(kind, season, category)
            assert len(colours) > 1
            assert {*colours} <= {*COLOURS}


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_agree_with_the_facts(kind):
    for seed in range(12):
        scene = make_scene(seed, kind)
        counted = np.array([o.box for o in scene.objects if o.role == "counted"])
        landmark = next(o.box for o in scene.objects if o.role == "landmark")
        boxes = np.array([o.box for o in scene.objects])
        assert len(counted) == scene.facts.count
        assert scene.relations == [(scene.facts.category, scene.facts.relation, scene.facts.landmark)]
        assert sorted(o.category for o in scene.objects if o.role == "extra") == sorted(scene.facts.extras)
        assert boxes.min() >= 0
        assert boxes.max() <= 224
        sides = counted[:, 2:] - counted[:, :2]
        assert sides.min() >= 10
        assert sides.max(1).min() >= 18
        axis = 0 if scene.facts.relation in {"left of", "right of"} else 1
        shift = (counted[:, :2] + counted[:, 2:]).mean(0) / 2 - np.add(landmark[:2], landmark[2:]) / 2
        assert (shift[axis] > 0) == (scene.facts.relation in {"right of", "below"})
        assert abs(shift[axis]) > 1.3 * abs(shift[1 - axis])
        for box in counted:  # none overlaps the landmark along the named axis
            assert box[axis] >= landmark[axis + 2] - 6 or box[axis + 2] <= landmark[axis] + 6


def test_counted_things_have_the_colour_that_is_named():
    near = 0
    for seed in range(60):
        scene = make_scene(seed, "car park")
        pixels = np.asarray(scene.image, np.int32)
        wanted = np.array(COLOURS[scene.facts.colour])
        for thing in (o for o in scene.objects if o.role == "counted"):
            x1, y1, x2, y2 = thing.box
            patch = pixels[y1:y2, x1:x2].reshape(-1, 3)
            names = [min(COLOURS, key=lambda c: np.abs(p - COLOURS[c]).sum()) for p in patch[::7]]
            near += names.count(scene.facts.colour) / len(names) > 0.25
            assert np.abs(patch - wanted).sum(1).min() < 120
    assert near > 100


def test_clean_captions_are_true():
    for seed in range(1500):
        facts = draw_facts(scene_rng(seed))
        for text in captions(facts, generator(seed), 4):
            assert not lies(text, facts), (text, facts)


@pytest.mark.parametrize("kind", CHANGES)
def test_corrupted_captions_are_false(kind):
    for seed in range(1500):
        facts = draw_facts(scene_rng(seed))
        text, label = corrupt(facts, generator(seed), kind)
        assert label == kind
        assert lies(text, facts), (text, facts)


def test_useless_captions_name_nothing_of_the_scene():
    clean = {text for s in range(300) for text in captions(draw_facts(scene_rng(s)), generator(s), 5)}
    for seed in range(300):
        facts, rng = draw_facts(scene_rng(seed)), generator(seed)
        assert not MENTION.search(corrupt(facts, rng, "vague")[0])
        assert not MENTION.search(corrupt(facts, rng, "off_topic")[0])
        assert corrupt(facts, rng, "garbled")[0] not in clean


def test_length_and_words_do_not_give_a_wrong_caption_away():
    texts: dict[str, list[str]] = {"clean": [], **{k: [] for k in CHANGES}}
    for seed in range(3000):
        facts, rng = draw_facts(scene_rng(seed)), generator(seed)
        texts["clean"] += captions(facts, rng, 2)
        for kind in CHANGES:
            texts[kind].append(corrupt(facts, rng, kind)[0])
    lengths = {kind: np.array([len(t.split()) for t in some]) for kind, some in texts.items()}
    known = set(re.findall("[a-z]+", " ".join(texts["clean"]).lower()))
    for kind in CHANGES:
        assert abs(lengths[kind].mean() - lengths["clean"].mean()) < 2.5
        assert abs(lengths[kind].std() - lengths["clean"].std()) < 1.5
        assert set(re.findall("[a-z]+", " ".join(texts[kind]).lower())) <= known


def test_wrong_counts_and_colours_are_spread_like_right_ones():
    right, wrong = Counter(), Counter()
    for seed in range(6000):
        facts = draw_facts(scene_rng(seed))
        if largest_count(facts.category) == 6:
            right[facts.count] += 1
            wrong[CHANGES["wrong_count"](facts, generator(seed))[0].count] += 1
    for n in range(1, 7):
        assert 0.8 < wrong[n] / right[n] < 1.25


def test_corruptions_are_drawn_evenly():
    rng = generator(0)
    drawn = Counter(corrupt(draw_facts(rng), rng)[1] for _ in range(4500))
    assert set(drawn) == set(CORRUPTIONS)
    assert min(drawn.values()) > 400
    with pytest.raises(KeyError):
        corrupt(draw_facts(rng), rng, "rude")


def test_example_is_worded_anew_by_its_generator():
    image, clean, wrong = scene_example(3)
    again = scene_example(3)
    other = scene_example(3, generator(8))
    assert (image.tobytes(), clean, wrong) == (again[0].tobytes(), again[1], again[2])
    assert other[0].tobytes() == image.tobytes()
    assert other[1:] != (clean, wrong)
    assert list(wrong) == list(CORRUPTIONS)


def test_answers_follow_from_the_objects():
    for seed in range(60):
        scene = make_scene(seed, size=112)
        asked = {q["type"]: q for q in questions(scene.facts, scene.objects, scene.image.size, generator(seed))}
        names = Counter(o.category for o in scene.objects)
        assert int(asked["count"]["answer"]) == names[scene.facts.category]
        assert scene.kind in asked["scene"]["question"]
        for kind, present in (("presence_yes", True), ("presence_no", False)):
            noun = MENTION.search(asked[kind]["question"])[3]
            assert (names[noun] > 0) == present == (asked[kind]["answer"] == "yes")
        numbers = [int(n) for n in re.findall(r"\d+", asked["grounding"]["answer"])]
        assert numbers == [round(v * 1000 / 112) for box in asked["grounding"]["boxes"] for v in box]
        assert asked["grounding"]["answer"].count("<|box_start|>") == len(asked["grounding"]["boxes"])


def test_program_writes_the_same_data_set_twice(tmp_path, capsys):
    args = ["--count", "12", "--seed", "2", "--size", "64", "--captions-per-image", "2", "--contact-sheet"]
    for folder in ("a", "b", "b"):
        main(["--output", str(tmp_path / folder), *args])
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 12 + 3
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    rows = list(csv.DictReader((tmp_path / "a" / "scenes.csv").open(encoding="utf-8")))
    assert list(rows[0]) == ["filename", "title", "scene", "corruption"]
    assert sum(r["corruption"] == "clean" for r in rows) == 12 == len(rows) / 2
    notes = [json.loads(line) for line in (tmp_path / "a" / "annotations.jsonl").open(encoding="utf-8")]
    assert [n["filename"] for n in notes] == [r["filename"] for r in rows[::2]]
    for row in rows:
        note = next(n for n in notes if n["filename"] == row["filename"])
        facts = Facts(**{**note["facts"], "extras": tuple(note["facts"]["extras"])})
        if row["corruption"] in {"clean", *CHANGES}:
            assert bool(lies(row["title"], facts)) == (row["corruption"] != "clean")


@pytest.mark.parametrize(
    "bad", [["--corrupt", "1.5"], ["--count", "0"], ["--size", "8"], ["--captions-per-image", "0"]]
)
def test_program_refuses_senseless_arguments(tmp_path, bad):
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path / "out"), *bad])
    assert not (tmp_path / "out").exists()
