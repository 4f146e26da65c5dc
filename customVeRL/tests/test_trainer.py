"""verl's own trainer runs the whole loop on the CPU: rollout with images, rewards over HTTP, KL, update, validation,
checkpoint, and goes on from it. And its CPU rollout computes what it should."""

import json
import os
import subprocess
import sys
from functools import partial
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from conftest import POLICY, ROOT, SCORERS_PYTHON, VERL, png, write_rows
from scorers_verl.cpu_rollout import Generator

THINKING = ROOT / "assets" / "nano" / "vlm-r1"
RESERVED = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"


def prompt(processor, question, images):
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return processor(text=[text], images=images or None, return_tensors="pt")


def asked(processor, sampling):
    pictures = [Image.open(BytesIO(png(colour=colour))) for colour in ("red", "navy")]
    cases = [("What is it?", pictures[:1]), ("Which of these two pictures is the redder one?", pictures), ("Why?", [])]
    inputs = [prompt(processor, *case) for case in cases]
    return inputs, [(one["input_ids"][0].tolist(), case[1], sampling) for one, case in zip(inputs, cases, strict=True)]


@pytest.fixture(scope="module")
def generator():
    return Generator(str(POLICY), response_length=12, seed=0)


def test_rollout_of_a_batch_is_that_of_each_prompt_alone(processor, generator):
    """Prompts of one image, two and none together: padding on the left and positions change nothing."""
    inputs, together = asked(processor, {"temperature": 0, "top_p": 1.0, "top_k": -1})
    model = AutoModelForImageTextToText.from_pretrained(POLICY, dtype=torch.float32).eval()
    reserved = [processor.tokenizer.convert_tokens_to_ids(token) for token in RESERVED]
    for one, output in zip(inputs, generator.generate(together), strict=True):
        alone = model.generate(**one, max_new_tokens=12, do_sample=False, suppress_tokens=reserved)
        said = alone[0, one["input_ids"].shape[1] :].tolist()
        assert output.token_ids == said


def test_rollout_probabilities_are_those_of_a_forward_pass(processor, generator):
    """Of the whole distribution at the temperature, whatever was sampled from: what the trainer compares them with."""
    torch.manual_seed(3)
    inputs, together = asked(processor, {"temperature": 0.7, "top_p": 0.8, "top_k": 20})
    for one, output in zip(inputs, generator.generate(together), strict=True):
        assert len(output.log_probs) == len(output.token_ids)
        said = torch.tensor([output.token_ids])
        whole = dict(one) | {"input_ids": torch.cat([one["input_ids"], said], 1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        kinds = one["mm_token_type_ids"]
        whole["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(said)], 1)
        with torch.inference_mode():
            logits = generator.model(**whole).logits[0, one["input_ids"].shape[1] - 1 : -1] / 0.7
        wanted = logits.log_softmax(-1).gather(-1, said[0][:, None])[:, 0]
        assert output.log_probs == pytest.approx(wanted.tolist(), abs=1e-4)


LOGITS = """
import json, sys, torch
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.inference_mode():
    print(json.dumps(model(**torch.load(sys.argv[2])).logits[0, -3:].tolist()))
"""


def test_a_policy_computes_the_same_as_in_the_basic_environment(processor, generator, tmp_path):
    """transformers is older here, and does not know all words of the nano model's configuration."""
    inputs, _ = asked(processor, {})
    torch.save(dict(inputs[1]), tmp_path / "inputs.pt")
    command = [str(SCORERS_PYTHON), "-c", LOGITS, str(POLICY), str(tmp_path / "inputs.pt")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    with torch.inference_mode():
        here = generator.model(**inputs[1]).logits[0, -3:]
    torch.testing.assert_close(here, torch.tensor(json.loads(printed.splitlines()[-1])), atol=1e-4, rtol=1e-4)


def test_rollout_takes_whole_weights_alone(generator):
    weights = {name: weight.numpy() for name, weight in generator.model.state_dict().items()}
    generator.load(weights)
    weights.pop("model.language_model.norm.weight")
    with pytest.raises(RuntimeError, match=r"missing \['model\.language_model\.norm\.weight'\]"):
        generator.load(weights)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Questions about made scenes, and one without an image among them."""
    path = tmp_path_factory.mktemp("rows") / "made.parquet"
    program = [str(SCORERS_PYTHON), str(ROOT / "python_script" / "make_vlm_data.py"), "--output", str(path)]
    options = ["--scenes", "7", "--seed", "24", "--size", "112", "--kinds", "caption", "yes_no"]
    subprocess.run([*program, *options], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    table = pd.read_parquet(path).to_dict("records")
    bare = {"id": "text", "kind": "yes_no", "image": None, "question": "Is water wet?", "answer": "yes"}
    table.append({**table[0], **bare})
    return write_rows(path.with_name("rows.parquet"), table)


def trained(folder: Path, rows: Path, url: str, *overrides: str) -> list[dict]:
    """Runs the launcher; returns the lines of its metrics."""
    metrics = folder / f"metrics-{len(list(folder.glob('metrics-*')))}.jsonl"
    settings = {"MODEL_PATH": THINKING, "DATA_PATH": rows, "EVAL_PATH": rows, "REWARD_URL": url, "OUTPUT_DIR": folder}
    settings |= {"VERL_FILE_LOGGER_PATH": metrics, "VERL_ENV": Path(sys.prefix), "SCORERS_PYTHON": SCORERS_PYTHON}
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    command = ["bash", str(VERL / "examples" / "train_grpo.sh"), "data.max_response_length=64", *overrides]
    for _ in range(3):  # Ray gives its processes 30 s to start, too little where others keep the machine busy
        run = subprocess.run(
            command, check=False, env=environment, cwd=folder, capture_output=True, text=True, timeout=1800
        )
        if "The current node timed out during startup" not in run.stdout + run.stderr:
            break
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
    return [json.loads(line) for line in metrics.read_text().splitlines()]


@pytest.mark.slow
def test_verl_trains_validates_keeps_and_goes_on(rows, score_server, tmp_path):
    before = score_server.requests()
    two = ("trainer.total_training_steps=2", "trainer.save_freq=2", "trainer.test_freq=2")
    lines = trained(tmp_path, rows, score_server.url, *two)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        told = line["data"]
        assert 0 <= told["critic/score/min"] <= told["critic/score/max"] <= 1
        assert told["training/rollout_probs_diff_max"] < 1e-3
    assert max(line["data"]["critic/score/mean"] for line in lines) > 0
    assert max(line["data"]["actor/grad_norm"] for line in lines) > 1e-3
    assert lines[0]["data"]["actor/kl_loss"] == pytest.approx(0, abs=1e-6), "the policy is its own reference"
    assert lines[1]["data"]["actor/kl_loss"] > 0
    for kind in ("caption", "yes_no"):
        assert 0 <= lines[1]["data"][f"val-core/{kind}/reward/mean@1"] <= 1
    assert score_server.requests() > before, "captions were scored by the server"
    rewarded = [json.loads(line) for step in (1, 2) for line in (tmp_path / f"rollouts/{step}.jsonl").open()]
    assert len(rewarded) == 2 * 4 * 4
    assert len({one["score"] for one in rewarded}) > 2
    judged = [json.loads(line) for line in (tmp_path / "validation" / "2.jsonl").open()]
    assert len(judged) == 8
    for one in judged:
        assert one["score"] == pytest.approx(one["overall"])
        assert all(0 <= one[part] <= 1 for part in ("overall", "format", "accuracy", "unparsed"))

    kept = tmp_path / "checkpoints" / "global_step_2" / "actor" / "huggingface"
    load = partial(AutoModelForImageTextToText.from_pretrained, dtype=torch.float32)  # whatever weights are called
    after, given = (load(folder).state_dict() for folder in (kept, THINKING))
    assert after.keys() == given.keys()
    assert not all(torch.equal(after[name], given[name]) for name in given)

    three = ("trainer.total_training_steps=3", "trainer.save_freq=3", "trainer.test_freq=-1")
    (line,) = trained(tmp_path, rows, score_server.url, *three)
    assert line["step"] == 3
    assert line["data"]["training/rollout_probs_diff_max"] < 1e-3
    assert line["data"]["actor/kl_loss"] > 0, "it went on from trained weights, not from the policy that was given"
    assert (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == "3"
    assert not {"outputs", "wandb", "tensorboard_log"} & {path.name for path in tmp_path.iterdir()}
