"""Instruction data: true answers, none given away by the question, even kinds, files that are read back."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from python_script import make_vlm_data
from src.chat import thinking_prompt
from src.dataset.instructions import (
    DESCRIBE,
    KINDS,
    _presence,
    in_turns,
    scene_conversations,
    scene_turns,
    write_instructions,
)
from src.dataset.records import DataSpec, read_records
from src.dataset.scene_facts import draw_facts
from src.dataset.scenes import Scene, make_scene, scene_rng, scene_seeds
from src.rewards.boxes import parse_boxes
from src.rewards.rewards import read_response


def test_answers_are_true_of_the_scene():
    for seed in range(12):
        scene = make_scene(seed, size=56)
        told = {kind: (question, answer) for kind, question, answer in scene_turns(scene, scene_rng(seed))}
        assert tuple(told) == KINDS
        facts = scene.facts
        assert told["count"][1] == str(facts.count)
        assert told["relation"][1] == facts.relation
        assert told["scene"][1] == facts.kind
        assert facts.kind in told["scene"][0]
        assert told["colour"][1] == (facts.colour if facts.category in told["colour"][0] else facts.landmark_colour)
        named = told["yes_no"][0].removeprefix("Is there ").split(" ", 1)[1].removesuffix(" in the image?")
        assert (named in facts.things) == (told["yes_no"][1] == "yes")
        boxes = {tuple(round(1000 * v / 56) for v in thing.box) for thing in scene.objects}
        found = parse_boxes(told["grounding"][1])
        assert found
        assert {tuple(map(int, box)) for box in found} <= boxes
        assert told["caption"][0] in DESCRIBE


def test_yes_and_no_are_even_for_whatever_is_asked_for():
    """Over thousands of scenes no name of a thing, within a kind of scene, gives the answer away."""
    asked: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    total: Counter[str] = Counter()
    for seed in range(6000):
        rng = scene_rng(seed)
        scene = Scene(seed, None, draw_facts(rng), (), {})
        question, answer = _presence(scene, rng)
        asked[scene.kind, question][answer] += 1
        total[answer] += 1
    assert total["yes"] / total.total() == pytest.approx(0.5, abs=0.03)
    often = [counts["yes"] / counts.total() for counts in asked.values() if counts.total() >= 40]
    assert len(often) > 30
    assert min(often) > 0.2
    assert max(often) < 0.8


def test_kinds_are_even_and_the_same_seeds_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        made = scene_conversations(scene_seeds(3, 14), KINDS, 2, 56)
        counts = write_instructions(made, tmp_path / f"{name}.parquet")
        assert set(counts.values()) == {4}
        assert set(counts) == set(KINDS)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    spec = DataSpec(str(tmp_path / "one.parquet"), None, "image", "answer", "id", "kind", "question")
    records = list(read_records(spec))
    assert len(records) == 28
    assert all(record.error is None and record.question for record in records)
    others = {one["id"] for one in scene_conversations(scene_seeds(4, 14), KINDS, 2, 56)}
    assert not others & {record.id for record in records}


def test_several_turns_are_about_one_image(tmp_path):
    made = list(scene_conversations(scene_seeds(3, 4), KINDS, 3, 56))
    path = tmp_path / "chats.jsonl"
    write_instructions(in_turns(made, 2), path)
    records = list(read_records(DataSpec(str(path), source_column="kind")))
    assert [len(record.turns) // 2 for record in records] == [2, 1] * 4
    assert sum(turn["content"].count("<image>") for turn in records[0].turns) == 1
    assert records[0].source == made[1]["turns"][0][0]
    with pytest.raises(ValueError, match="one turn"):
        write_instructions(in_turns(made, 2), tmp_path / "chats.parquet")


def test_a_kind_asked_several_times_asks_for_other_things_each_time():
    """A question asked again could be answered from what was answered before, without the image."""
    numbers = []
    for one in in_turns(scene_conversations(scene_seeds(3, 40), ["yes_no"] * 5 + ["count"], 6, 56), 6):
        questions = [question for _, question, _ in one["turns"]]
        assert len(questions) == len(set(questions))
        numbers.append(len(questions))
    assert max(numbers) == 6
    assert min(numbers) > 1


def test_answers_in_the_thinking_format_have_the_facts_before_them_and_the_prompt_above(tmp_path):
    options = ["--scenes", "3", "--size", "56", "--questions", "2", "--turns", "2", "--seed", "7"]
    files = [tmp_path / name / "chats.jsonl" for name in ("plain", "thinking")]
    for path, more in zip(files, ([], ["--thinking"]), strict=True):
        make_vlm_data.main(["--output", str(path), *options, *more])
    plain, thinking = (list(read_records(DataSpec(str(path)))) for path in files)
    for seed, bare, record in zip(scene_seeds(7, 3), plain, thinking, strict=True):
        system, *turns = record.turns
        assert system == {"role": "system", "content": thinking_prompt()}
        assert [turn["content"] for turn in turns[::2]] == [turn["content"] for turn in bare.turns[::2]]
        for told, answer in zip(turns[1::2], bare.turns[1::2], strict=True):
            assert read_response(told["content"]) == answer["content"]
            facts = make_scene(seed, size=56).facts
            assert f"<think>{facts.kind} : {facts.count} {facts.colour} " in told["content"]
            assert all(extra in told["content"] for extra in (facts.relation, facts.landmark, *facts.extras))
    with pytest.raises(SystemExit):
        make_vlm_data.main(["--output", str(tmp_path / "x.parquet"), "--scenes", "1", "--thinking"])


def test_the_program_adds_real_captions_and_counts_what_is_left_out(pictures, capsys):
    (pictures / "pairs.csv").write_text("filename,title\na.png,a lake\ngone.png,a pier\nb.png,two ships\n")
    output = pictures / "out" / "chats.jsonl"
    made = ["--scenes", "2", "--size", "56", "--kinds", "count"]
    make_vlm_data.main(["--output", str(output), *made, "--captions", str(pictures / "pairs.csv")])
    printed = capsys.readouterr().out
    assert "real_caption            2" in printed
    assert "left out: missing_image 1 records" in printed
    told = [json.loads(line) for line in output.read_text().splitlines()]
    assert [one["kind"] for one in told] == ["count"] * 2 + ["real_caption"] * 2
    assert told[2]["messages"][1]["value"] == "a lake"
    assert all((output.parent / image).is_file() for one in told for image in one["images"])
    for wrong in (
        ["--turns", "2", "--output", "x.parquet"],
        ["--output", "x.csv"],
        ["--output", "x.jsonl", "--questions", "9"],
    ):
        with pytest.raises(SystemExit):
            make_vlm_data.main(wrong)
    assert not Path("x.csv").exists()
