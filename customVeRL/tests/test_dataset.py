"""Rows become prompts in the thinking format, with real lengths; what cannot be used is left out and told."""

import asyncio
from io import BytesIO

import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image
from verl.utils.tokenizer import build_multimodal_processor_inputs

from conftest import ROOT, composed, png, write_rows
from scorers_verl.dataset import NO_VALIDATION, GrpoDataset
from src.chat import thinking_prompt
from src.errors import JobError

ROW = {"prompt": "How many ships?", "answer": "7", "type": "em", "problem": "How many ships?", "image": png()}


def dataset(processor, path, *overrides, **keys):
    free = (
        "data.filter_overlong_prompts_workers=1",
        "data.min_pixels=null",
        f"+data.cache_dir={path.parent / 'cache'}",
    )
    config = OmegaConf.merge(composed("grpo_7b", *free, *overrides).data, keys)
    return GrpoDataset(str(path), processor.tokenizer, config, processor)


def rollout_length(data, processor, messages):
    """Tokens of a prompt, as verl's agent loop makes it for the rollout: with pixels and all."""
    images, _, _ = asyncio.run(GrpoDataset.process_multi_modal_info(messages, 14, data.config))
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = build_multimodal_processor_inputs(processor, text=[text], images=images)
    return len(inputs["input_ids"][0])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    return tmp_path


def test_a_row_as_verl_gets_it(processor, cache):
    data = dataset(processor, write_rows(cache / "a.parquet", [ROW]))
    row = data[0]
    system, user = row["raw_prompt"]
    assert system == {"role": "system", "content": [{"type": "text", "text": thinking_prompt()}]}
    image, text = user["content"]
    assert (image["type"], image["image"].size, image["image"].mode) == ("image", (112, 112), "RGB")
    assert image["max_pixels"] == 1048576
    assert text == {"type": "text", "text": "How many ships?"}
    assert row["reward_model"] == {"style": "em", "ground_truth": "7"}
    assert (row["data_source"], row["reward_type"], row["problem"]) == ("em", "em", "How many ships?")


def test_images_of_all_forms_and_none(processor, cache):
    """Defects 54 and 55: a null among images, and images that are not bytes."""
    path = cache / "b.png"
    path.write_bytes(png(56, 84))
    two = [{"bytes": None, "path": str(path)}, {"bytes": png(), "path": "a.png"}]
    struct = [
        {**ROW, "image": [{"bytes": png(), "path": None}]},
        {**ROW, "image": None, "prompt": "Which is larger, a pier or a ship?"},
        {**ROW, "image": two, "prompt": "<image> or <image>?"},
        {**ROW, "image": []},
    ]
    data = dataset(processor, write_rows(cache / "a.parquet", struct))
    sizes = [
        [part["image"].size for m in data[k]["raw_prompt"] for part in m["content"] if part["type"] == "image"]
        for k in range(4)
    ]
    assert sizes == [[(112, 112)], [], [(56, 84), (112, 112)], []]
    messages = data.messages({**ROW, "image": Image.open(BytesIO(png()))})
    assert messages[1]["content"][0]["image"].size == (112, 112)


@pytest.mark.parametrize(
    ("width", "height", "limits"),
    [(112, 112, {}), (30, 20, {}), (640, 64, {}), (300, 200, {"max_pixels": 12544}), (40, 40, {"min_pixels": 8000})],
    ids=["square", "tiny", "wide", "shrunk", "enlarged"],
)
def test_lengths_are_those_of_the_rollout(processor, cache, width, height, limits):
    """Defect 39: characters were counted, and no token of an image."""
    row = {**ROW, "image": png(width, height)}
    data = dataset(processor, write_rows(cache / "a.parquet", [row]), **limits)
    messages = data[0]["raw_prompt"]
    assert data.prompt_tokens(messages) == rollout_length(data, processor, messages)


def test_prompts_at_the_limit_stay_and_beyond_it_go(processor, cache, capsys):
    rows = [{**ROW, "prompt": "ships " * count, "image": png() if count % 2 else None} for count in (1, 2, 60, 61)]
    path = write_rows(cache / "a.parquet", rows)
    free = dataset(processor, path)
    lengths = [free.prompt_tokens(free[k]["raw_prompt"]) for k in range(4)]
    assert len(set(lengths)) == 4
    limit = sorted(lengths)[1]
    data = dataset(processor, path, max_prompt_length=limit)
    assert [data.prompt_tokens(data[k]["raw_prompt"]) for k in range(len(data))] == [n for n in lengths if n <= limit]
    assert "4 rows, 2 kept, 2 left out: prompt_too_long 2" in capsys.readouterr().out


def test_a_too_long_prompt_is_an_error_where_none_may_go(processor, cache):
    path = write_rows(cache / "a.parquet", [ROW])
    with pytest.raises(JobError, match=r"1 prompts are too long: row 0: \d+ tokens, above data.max_prompt_length=20"):
        dataset(processor, path, max_prompt_length=20, filter_overlong_prompts=False)


def test_rows_that_cannot_be_used_are_counted_by_kind(processor, cache, capsys):
    """Defect 56 among them: an unknown type of reward."""
    rows = [
        ROW,
        {**ROW, "type": "bleu"},
        {**ROW, "answer": "  "},
        {**ROW, "image": b"no image"},
        {**ROW, "type": "iou", "answer": "no box"},
        {**ROW, "prompt": "<image> and <image>"},
        {**ROW, "prompt": "<|image_pad|>"},
    ]
    data = dataset(processor, write_rows(cache / "a.parquet", rows))
    assert len(data) == 1
    told = capsys.readouterr().out
    assert "7 rows, 1 kept, 6 left out" in told
    kinds = (
        "unknown_reward_type",
        "empty_answer",
        "unreadable_image",
        "no_reference_box",
        "bad_record",
        "reserved_token",
    )
    for kind in kinds:
        assert f"{kind} 1 (first row" in told
    assert "type 'bleu' has no reward of em, iou, open_ended, math" in told


def test_no_usable_row_and_no_such_column_end_the_run(processor, cache):
    path = write_rows(cache / "a.parquet", [{**ROW, "type": "bleu"}])
    with pytest.raises(JobError, match="none of 1 rows can be used: unknown_reward_type 1"):
        dataset(processor, path)
    with pytest.raises(JobError, match=r"no such column: data\.answer_key=solution; there are prompt, answer"):
        dataset(processor, path, answer_key="solution")


def test_a_format_prompt_that_is_not_there_ends_the_run(processor, cache):
    """Defect 40: a typo trained without the reasoning prompt."""
    path = write_rows(cache / "a.parquet", [ROW])
    with pytest.raises(JobError, match=r"typo\.json holds no meta_instruction"):
        dataset(processor, path, format_prompt="config/typo.json")
    assert [m["role"] for m in dataset(processor, path, format_prompt=None)[0]["raw_prompt"]] == ["user"]


def test_no_processor_ends_the_run(processor, cache):
    path = write_rows(cache / "a.parquet", [ROW])
    with pytest.raises(JobError, match="no processor"):
        GrpoDataset(str(path), processor.tokenizer, composed("grpo_7b").data, None)


def test_types_of_other_names_have_the_rewards_they_are_given(processor, cache):
    rows = [{**ROW, "type": kind} for kind in ("caption", "count", "math")]
    path = write_rows(cache / "a.parquet", rows)
    data = dataset(processor, path, "data.reward_by_type={caption: open_ended}", "data.reward_default=em")
    assert [data[k]["reward_type"] for k in range(3)] == ["open_ended", "em", "math"]
    assert [data[k]["data_source"] for k in range(3)] == ["caption", "count", "math"]


def test_turns_and_the_problem_of_the_prompt(processor, cache):
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "<image>What is it?"}]
    data = dataset(processor, write_rows(cache / "a.parquet", [{**ROW, "prompt": turns}]), problem_key=None)
    row = data[0]
    assert [m["role"] for m in row["raw_prompt"]] == ["system", "user"]
    assert row["raw_prompt"][0]["content"][0]["text"] == "Be short."
    assert row["problem"] == "What is it?"


def test_a_folder_of_files(processor, cache):
    (cache / "rows").mkdir()
    for name in ("a", "b"):
        write_rows(cache / "rows" / f"{name}.parquet", [ROW])
    assert len(dataset(processor, cache / "rows")) == 2
    (cache / "empty").mkdir()
    with pytest.raises(JobError, match=r"empty holds no \.parquet file"):
        dataset(processor, cache / "empty")


def test_rows_that_fastparquet_wrote(processor, cache):
    pd.DataFrame([ROW, ROW]).to_parquet(cache / "a.parquet", engine="fastparquet")
    data = dataset(processor, cache / "a.parquet")
    assert len(data) == 2
    assert data[0]["raw_prompt"][1]["content"][0]["image"].size == (112, 112)


@pytest.mark.parametrize("none", [None, "", []], ids=["null", "empty", "no-files"])
def test_training_without_held_out_rows(processor, cache, none):
    """Defect 53: without val_files the loader crashed. verl wants some rows: one of the training data, named so."""
    path = write_rows(cache / "a.parquet", [ROW, ROW])
    config = composed("grpo_7b", f"data.train_files={path}", "data.min_pixels=null", f"+data.cache_dir={cache}").data
    data = GrpoDataset(none, processor.tokenizer, config, processor)
    assert (len(data), data[0]["data_source"]) == (1, NO_VALIDATION)


def test_the_default_prompt_is_the_project_s_own():
    assert (ROOT / composed("grpo_7b").data.format_prompt).is_file()
