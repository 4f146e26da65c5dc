"""Rewards of responses as verl asks for them: by rule and by a live score server, in few calls; no reward is no 0."""

import asyncio
import json
import pickle
import time
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from tensordict import TensorDict
from verl import DataProto

from conftest import ROOT, ScoreServer, composed, free_port, png
from scorers_verl.reward import MicroBatches, ScoreRewardManager
from src.errors import JobError, RecordError
from src.serving.client import RewardClient

ROWS = json.loads((ROOT / "tests" / "fixtures" / "metrics" / "rewards.json").read_text())["rows"]
BY_RULE = [row for row in ROWS if row["reward_type"] in ("em", "iou", "math") and "bounds" not in row]
GOOD = "<think>Two piers.</think><answer>{}</answer>"


def manager(processor, url=None, **keys):
    overrides = [f"scorers.{key}={value}" for key, value in {"server_url": url or "null", **keys}.items()]
    return ScoreRewardManager(composed("grpo_nano", *overrides), processor.tokenizer, None)


def sample(processor, response, kind="em", reference="7", images=(), question="How many ships?", pad=3):
    """A response as verl hands it to a reward manager, padded on the right."""
    ids = processor.tokenizer(response + "<|im_end|>")["input_ids"]
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
    system = {"role": "system", "content": [{"type": "text", "text": "Think."}]}
    told = {
        "raw_prompt": [system, {"role": "user", "content": content}],
        "reward_type": kind,
        "reward_model": {"style": kind, "ground_truth": reference},
        "problem": question,
    }
    prompt = [1, 1, 1, 1]
    tensors = {
        "prompts": torch.tensor([prompt]),
        "responses": torch.tensor([ids + [0] * pad]),
        "attention_mask": torch.tensor([[1] * (len(prompt) + len(ids)) + [0] * pad]),
    }
    return DataProto(TensorDict(tensors, batch_size=1), {key: np.array([value]) for key, value in told.items()})


def run(manager, samples):
    async def all_at_once():
        return await asyncio.gather(*(manager.run_single(one) for one in samples), return_exceptions=True)

    return asyncio.run(all_at_once())


def picture(colour):
    return Image.open(BytesIO(png(colour=colour)))


def test_every_response_has_the_same_keys(processor):
    found = run(
        manager(processor), [sample(processor, GOOD.format(text)) for text in ("7", "8", "")] + [sample(processor, "7")]
    )
    keys = {"overall", "format", "accuracy", "unparsed"}
    assert [one["reward_score"] for one in found] == pytest.approx([1.0, 0.3, 0.0, 0.0])
    assert all(set(one["reward_extra_info"]) == keys for one in found)
    assert all(0 <= value <= 1 for one in found for value in one["reward_extra_info"].values())


def test_the_project_s_own_cases(processor):
    """Every row by rule of the fixtures, box tokens and white space included, through tokens and verl's batches."""
    assert len(BY_RULE) > 30
    for weight in {row["format_weight"] for row in BY_RULE}:
        rows = [row for row in BY_RULE if row["format_weight"] == weight]
        samples = [sample(processor, row["response"], row["reward_type"], row["reference"]) for row in rows]
        for row, found in zip(rows, run(manager(processor, format_weight=weight), samples), strict=True):
            if "error" in row["correct"]:
                assert isinstance(found, RecordError), row["id"]
            else:
                wanted = {key: float(value) for key, value in row["correct"].items()}
                assert found["reward_extra_info"] == pytest.approx(wanted, abs=1e-9), row["id"]
                assert found["reward_score"] == found["reward_extra_info"]["overall"]


def test_an_unknown_kind_raises(processor):
    """Defect 56. Its error also crosses processes, as verl's workers need."""
    bleu, fine = run(
        manager(processor), [sample(processor, GOOD.format("7"), "bleu"), sample(processor, GOOD.format("7"))]
    )
    assert isinstance(bleu, RecordError)
    assert "unknown kind of reward 'bleu'" in str(bleu)
    assert fine["reward_score"] == 1.0
    again = pickle.loads(pickle.dumps(bleu))
    assert (again.kind, str(again)) == (bleu.kind, str(bleu))


def test_open_ended_without_a_server_raises(processor):
    (error,) = run(manager(processor), [sample(processor, GOOD.format("a pier"), "open_ended", "a harbour")])
    assert isinstance(error, RecordError)
    assert "no scorer was given" in str(error)


def test_open_ended_rewards_of_a_live_server(processor, score_server):
    """Scored with the images and the problem of the prompt; many responses travel in few requests."""
    pictures = [picture("red"), picture("navy")]
    texts = [
        f"A picture with {word}."
        for word in ("a pier", "two ships", "nothing", "a red field", "water", "roofs", "x", "cars")
    ]
    asked = [(image, text) for image in pictures for text in texts]
    samples = [
        # verl copies the picture of a prompt for each of its responses
        sample(processor, GOOD.format(text), "open_ended", "A red field.", [image.copy()], "Describe.")
        for image, text in asked
    ]
    samples.insert(3, sample(processor, GOOD.format("7")))
    before = score_server.requests()
    found = run(manager(processor, score_server.url, batch_items=64, batch_ms=200), samples)
    assert score_server.requests() - before == 2, "one request for each picture"
    assert found.pop(3)["reward_score"] == 1.0
    with RewardClient(score_server.url) as client:
        for (image, text), one in zip(asked, found, strict=True):
            said, reference = client.score([image], "Describe.", [text, "A red field."])
            wanted = 1 / (1 + np.exp(reference - said))
            assert one["reward_extra_info"]["accuracy"] == pytest.approx(wanted, abs=1e-4)
            assert one["reward_score"] == pytest.approx(0.3 + 0.7 * wanted, abs=1e-4)
    assert len({round(one["reward_score"], 4) for one in found}) > 8


@pytest.mark.parametrize("form", ["bytes", "mapping", "picture"])
def test_images_need_not_be_bytes(processor, score_server, form):
    """Defect 55."""
    image = {"bytes": png(), "mapping": {"bytes": png(), "path": None}, "picture": picture("red")}[form]
    (found,) = run(
        manager(processor, score_server.url),
        [sample(processor, GOOD.format("a pier"), "open_ended", "a pier", [image])],
    )
    assert found["reward_extra_info"]["accuracy"] == pytest.approx(0.5, abs=1e-4)


def test_a_text_only_prompt_is_scored(processor, score_server):
    (found,) = run(
        manager(processor, score_server.url), [sample(processor, GOOD.format("a pier"), "open_ended", "a pier")]
    )
    assert found["reward_extra_info"]["accuracy"] == pytest.approx(0.5, abs=1e-4)


def test_what_the_server_refuses_is_the_error_of_its_response(processor, score_server):
    bad = sample(processor, GOOD.format("x" * 30_000), "open_ended", "a pier", [picture("red")])
    fine = sample(processor, GOOD.format("a pier"), "open_ended", "a pier", [picture("red")])
    broken = sample(processor, GOOD.format("a pier"), "open_ended", "a pier", [b"no image"])
    scorer = manager(processor, score_server.url)
    errors, after = run(scorer, [bad, fine, broken]), run(scorer, [sample(processor, GOOD.format("7"))])
    assert [isinstance(one, RecordError) for one in errors] == [True, False, True]
    assert errors[1]["reward_extra_info"]["accuracy"] == pytest.approx(0.5, abs=1e-4)
    assert after[0]["reward_score"] == 1.0, "a refusal ends nothing"


def test_a_dead_server_ends_the_rewards(processor):
    """Defect 57: it hung, or gave 0. After all tries even rewards by rule raise, so that training ends and says why."""
    scorer = manager(processor, f"http://127.0.0.1:{free_port()}", tries=3)
    started = time.monotonic()
    first = run(
        scorer, [sample(processor, GOOD.format("a pier"), "open_ended", "a pier"), sample(processor, GOOD.format("7"))]
    )
    assert all(isinstance(one, JobError) for one in first)
    assert "after 3 tries; the last: ConnectError" in str(first[0])
    assert time.monotonic() - started < 30
    (later,) = run(scorer, [sample(processor, GOOD.format("7"))])
    assert isinstance(later, JobError)


def test_a_server_that_restarts_costs_a_wait(processor, tmp_path):
    port = free_port()
    scorer = manager(processor, f"http://127.0.0.1:{port}", tries=15)

    async def ask_before_it_is_there():
        waiting = asyncio.create_task(
            scorer.run_single(sample(processor, GOOD.format("a pier"), "open_ended", "a pier"))
        )
        await asyncio.sleep(1)
        server = await asyncio.to_thread(ScoreServer, tmp_path / "log.txt", port)
        try:
            return await waiting
        finally:
            await asyncio.to_thread(server.stop)

    found = asyncio.run(ask_before_it_is_there())
    assert found["reward_extra_info"]["accuracy"] == pytest.approx(0.5, abs=1e-4)


def test_a_wrong_url_is_told_at_once(processor):
    """Defect 58: a wrong setting was reported as another."""
    with pytest.raises(JobError, match="must begin with http"):
        manager(processor, "box:8000")


@pytest.mark.parametrize("items", [1, 4, 100], ids=["each", "full", "timer"])
def test_calls_become_few(items):
    calls = []

    def answer(batch):
        calls.append(list(batch))
        return [RecordError("odd", "odd") if one % 2 else one * 10 for one in batch]

    async def ask():
        batches = MicroBatches(answer, items, 0.05)
        return await asyncio.gather(*map(batches, range(10)), return_exceptions=True)

    found = asyncio.run(ask())
    assert [one if isinstance(one, int) else one.kind for one in found] == [
        0,
        "odd",
        20,
        "odd",
        40,
        "odd",
        60,
        "odd",
        80,
        "odd",
    ]
    assert sorted(map(len, calls)) == {1: [1] * 10, 4: [2, 4, 4], 100: [10]}[items]


def test_a_call_that_fails_fails_all_of_its_items():
    def answer(batch):
        raise OSError("gone")

    async def ask():
        batches = MicroBatches(answer, 2, 0.01)
        return await asyncio.gather(batches(1), batches(2), batches(3), return_exceptions=True)

    assert [str(one) for one in asyncio.run(ask())] == ["gone"] * 3
