"""Batched generation against the model's own, one request at a time; and what must not depend on the company."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from src.chat import prompt_messages, thinking_prompt
from src.errors import JobError, RecordError
from src.evaluation.backends import Request, Sampling
from src.evaluation.backends.sampler import RowSampler
from src.evaluation.backends.transformers_model import TransformersBackend, TransformersOptions

BASE = Path(__file__).parents[3] / "assets" / "nano" / "base"
SHORT = Sampling(max_new_tokens=24)
DRAWN = Sampling(n=3, temperature=1.0, top_p=0.95, seed=3, max_new_tokens=20)


@pytest.fixture(scope="module")
def requests(images):
    a, b, c, d = images
    return [
        Request("", [a]),
        Request("hello there what", []),
        Request("compare these", [b, c]),
        Request("", [b]),
        Request("what is it", [b]),
        Request("first <image>\nthen <image> and say", [d, b]),
        Request([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}], [c]),
        Request("", [d]),
        Request("so where", [a]),
    ]


def alone(backend: TransformersBackend, request: Request, tokens: int) -> list[int]:
    """The greedy token ids of the model's own ``generate`` on one request, nothing of ours but the message builder."""
    messages = prompt_messages(request.turns, request.images)
    inputs = backend.processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ids = backend.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0]
    return ids[inputs["input_ids"].shape[1] :].tolist()


def decoded(backend: TransformersBackend, ids: list[int]) -> str:
    return backend.processor.tokenizer.decode(ids, skip_special_tokens=True)


def test_greedy_batches_give_token_for_token_what_each_request_gives_alone(backend, requests, monkeypatch):
    expected = [alone(backend, request, 24) for request in requests]
    made = []
    original = backend.model.generate

    def noted(**inputs):
        ids = original(**inputs)
        made.append([row[inputs["input_ids"].shape[1] :].tolist() for row in ids])
        return ids

    monkeypatch.setattr(backend.model, "generate", noted)
    texts = backend.generate(requests, SHORT)
    assert texts == [[decoded(backend, ids)] for ids in expected]
    assert len({text for (text,) in texts}) >= 6, "texts that hardly differ prove little"
    rows = [row for batch in made for row in batch]
    assert len(made) < len(requests) == len(rows)
    for ids in expected:  # padding follows where a longer text was in the same batch
        assert any(row[: len(ids)] == ids and set(row[len(ids) :]) <= {0} for row in rows)


def test_texts_drawn_from_one_token_are_the_greedy_ones_of_each_request_alone(backend, requests):
    """Two requests in a batch, each with two texts that go on from its one pass over the prompt."""
    certain = replace(SHORT, n=2, temperature=1.0, top_k=1)
    expected = [decoded(backend, alone(backend, request, 24)) for request in requests]
    assert backend.generate(requests, certain) == [[text] * 2 for text in expected]


def test_drawn_texts_depend_on_the_request_and_the_seed_alone(backend, requests):
    together = backend.generate(requests, DRAWN)
    assert [backend.generate([request], DRAWN)[0] for request in requests] == together
    assert backend.generate(requests[::-1], DRAWN)[::-1] == together
    assert all(len(set(texts)) == 3 for texts in together)
    fewer = backend.generate(requests, replace(DRAWN, n=1))
    assert fewer == [texts[:1] for texts in together]
    other = backend.generate(requests, replace(DRAWN, seed=4))
    assert all(a != b for a, b in zip(together, other, strict=True))
    named = backend.generate([replace(requests[0], name="x"), requests[0]], DRAWN)
    assert named[0] != named[1] == together[0]
    unseeded = replace(DRAWN, seed=None)
    assert backend.generate(requests[:1], unseeded) != backend.generate(requests[:1], unseeded)


def test_models_whose_cache_cannot_be_repeated_give_the_same_texts(backend, requests, monkeypatch):
    expected = backend.generate(requests[:4], DRAWN)
    monkeypatch.setattr(backend, "_repeats", False)
    assert backend.generate(requests[:4], DRAWN) == expected


def test_more_texts_than_fit_a_batch(backend, requests):
    many = replace(DRAWN, n=10)
    (texts,) = backend.generate(requests[:1], many)
    assert texts[:3] == backend.generate(requests[:1], DRAWN)[0]
    assert len(set(texts)) > 7


def test_rows_of_one_batch_keep_their_own_rules(backend, images):
    a, b = images[:2]
    rules = [SHORT, replace(SHORT, max_new_tokens=3), replace(SHORT, stop=(" number",)), replace(DRAWN, n=1)]
    mixed = backend.generate([Request("", [a], sampling=rule) for rule in rules])
    assert mixed == [backend.generate([Request("", [a])], rule)[0] for rule in rules]
    whole, short, stopped, drawn = (texts[0] for texts in mixed)
    assert whole.startswith(short)
    assert backend.generate([Request("", [a])], replace(SHORT, special_tokens=True)) == [[whole]], "no ending token"
    assert len(short) < len(whole)
    assert stopped == whole.partition(" number")[0] != whole
    assert drawn != whole
    assert backend.generate([Request("", [b])], replace(SHORT, stop=("\x00",)))[0][0] not in ("", whole)


def test_texts_say_whether_they_were_cut(backend, images):
    a = images[0]
    rules = [SHORT, replace(SHORT, max_new_tokens=3), replace(SHORT, stop=(" number",))]
    rules.append(replace(SHORT, max_new_tokens=64))
    made = list(backend.stream([Request("", [a], sampling=rule) for rule in rules]))
    ends = [len(alone(backend, Request("", [a]), 64)) <= 24]
    assert [each.finish for each in made] == [["stop" if ends[0] else "length"], ["length"], ["stop"], ["stop"]]


def test_a_batch_that_does_not_fit_the_memory_runs_in_halves(backend, requests, monkeypatch):
    original, sizes = backend._generate, []

    def small(prompts):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(prompts)

    expected = backend.generate(requests[:4], SHORT)
    monkeypatch.setattr(backend, "_generate", small)
    assert backend.generate(requests[:4], SHORT) == expected
    assert sizes == [4, 2, 2]


def test_a_stop_string_ends_the_work_too(backend, images, monkeypatch):
    lengths = []
    original = backend.model.generate
    monkeypatch.setattr(backend.model, "generate", lambda **x: lengths.append((y := original(**x)).shape[1]) or y)
    request = Request("", [images[0]])
    backend.generate([request], SHORT)
    backend.generate([request], replace(SHORT, stop=("ge numb",)))
    assert lengths[1] <= lengths[0] - 5


def test_prompts_run_once_and_shared_images_are_encoded_once(backend, images, monkeypatch):
    patches, rows = [], []
    tower, text = backend.model.model.visual, backend.model.model.language_model
    seen = tower.register_forward_pre_hook(lambda _, args, kwargs: patches.append(len(args[0])), with_kwargs=True)
    ran = text.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    a, b = images[0], images[1]
    requests = [Request("", [b]), Request("what is it", [b]), Request("compare", [b, a])]
    try:
        backend.generate(requests, SHORT)
        assert sum(patches) == 64 + 16
        patches.clear()
        rows.clear()
        backend.generate(requests[:1], replace(DRAWN, n=4, max_new_tokens=5))
        assert sum(patches) == 64
        assert rows[0][0] == 1
        assert set(rows[1:]) == {(4, 1)}
    finally:
        seen.remove()
        ran.remove()


def test_bad_requests_are_errors_and_the_others_go_on(backend, images, tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    requests = [
        Request("", [images[0]]),
        Request("", [tmp_path / "cut.png"], name="row 1"),
        Request("word " * 2000, [images[0]]),
        Request("", [images[0]]),
    ]
    backend_ = TransformersBackend(BASE, replace(backend.options, max_prompt_tokens=500))
    made = list(backend_.stream(requests, SHORT))
    kinds = [each.error.kind if each.error else "ok" for each in made]
    assert kinds == ["ok", "unreadable_image", "text_too_long", "ok"]
    assert made[0].texts == made[3].texts == backend.generate([requests[0]], SHORT)[0]
    assert "row 1" in str(made[1].error)


def test_image_tokens_are_never_drawn_and_marks_stay_if_asked(backend, images, monkeypatch):
    """A model that wants nothing but an image token, and next to it the mark of a box."""
    config, head = backend.model.config, backend.model.lm_head
    box = backend.processor.tokenizer.convert_tokens_to_ids("<|box_start|>")

    def wish(_, args, logits):
        logits[..., config.image_token_id] = 99.0
        logits[..., box] = 98.0

    hook = head.register_forward_hook(wish)
    try:
        request, few = Request("", [images[0]]), replace(SHORT, max_new_tokens=3)
        assert backend.generate([request], few) == [[""]]
        assert backend.generate([request], replace(few, special_tokens=True)) == [["<|box_start|>" * 3]]
        stopped = replace(few, special_tokens=True, stop=("start|><|",))
        assert backend.generate([request], stopped) == [["<|box_"]]
        assert backend.generate([request], replace(DRAWN, n=1, special_tokens=True, max_new_tokens=2))[0][0] == (
            "<|box_start|>" * 2
        )
    finally:
        hook.remove()


def test_the_thinking_prompt_is_the_system_turn(backend, images):
    turns = [{"role": "system", "content": thinking_prompt()}, {"role": "user", "content": "What?"}]
    assert backend.generate([Request(turns, [images[1]])], SHORT) != backend.generate([Request("What?", [images[1]])])


def test_max_pixels_limit_what_the_model_sees():
    small = TransformersBackend(BASE, TransformersOptions(device="cpu", max_pixels=56 * 56, progress=False))
    assert small.processor.image_processor.size.longest_edge == 56 * 56


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-4, 4), min_size=2, max_size=12, unique=True),
    st.floats(0.2, 2.0),
    st.floats(0.05, 1.0),
    st.integers(0, 14),
)
def test_numbers_are_turned_into_tokens_with_the_right_probabilities(logits, temperature, top_p, top_k):
    """Against the definition: a grid of numbers falls on each token as often as its probability says."""
    weights = [math.exp(logit / temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda k: -weights[k])
    kept, reached = [], 0.0
    for token in order[: top_k or None]:
        if reached >= top_p - 1e-12:
            break
        kept.append(token)
        reached += weights[token] / sum(weights)
    grid = 2000
    numbers = (torch.arange(grid, dtype=torch.float64)[:, None] + 0.5) / grid
    rule = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=1)
    sampler = RowSampler([rule], [1], [])
    scores = torch.tensor([logits], dtype=torch.float64).expand(grid, -1)
    drawn = torch.bincount(sampler._draw(scores, numbers).flatten(), minlength=len(logits)).tolist()
    whole = sum(weights[token] for token in kept)
    for token, count in enumerate(drawn):
        expected = weights[token] / whole if token in kept else 0.0
        assert abs(count / grid - expected) <= 1.5 / grid


def test_the_greatest_number_falls_on_the_last_token_that_is_kept():
    sampler = RowSampler([Sampling(temperature=1.0, top_k=2)], [1], [])
    scores = torch.tensor([[5.0, 4.0, 1.0, 0.0]])
    almost = torch.tensor([[1 - 2**-53]], dtype=torch.float64)
    assert sampler._draw(scores, almost).item() == 1


LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message.role | upper }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> TransformersBackend:
    """A tiny LLaVA-1.5 with random weights, as a folder that users could have."""
    folder = tmp_path_factory.mktemp("llava")
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=tokenizer.convert_tokens_to_ids("<image>")
    )
    model = LlavaForConditionalGeneration(config)
    for weight in model.parameters():
        weight.data.mul_(3 if weight.ndim > 1 else 1)
    model.save_pretrained(folder)
    shape = {"height": 28, "width": 28}
    LlavaProcessor(
        CLIPImageProcessor(size=shape, crop_size=shape),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return TransformersBackend(folder, TransformersOptions(device="cpu", batch_size=4, progress=False))


def test_another_family_by_the_same_code(llava, images):
    a, b = images[:2]
    requests = [Request("one", [a]), Request("two of them", [a, b]), Request("none at all"), Request("again", [b])]
    texts = llava.generate(requests, SHORT)
    assert texts == [[decoded(llava, alone(llava, request, 24))] for request in requests]
    assert len({text for (text,) in texts}) == 4
    together = llava.generate(requests, DRAWN)
    assert [llava.generate([request], DRAWN)[0] for request in requests] == together
    with pytest.raises(JobError, match="fixed size"):
        llava._limit_pixels(100)


def test_a_model_that_takes_no_pictures_is_refused(tmp_path):
    with pytest.raises(JobError, match="cannot load"):
        TransformersBackend(tmp_path)


def test_errors_name_the_request(backend, tmp_path):
    with pytest.raises(RecordError, match=r"request 1: scene 4: .*gone\.png"):
        backend.generate([Request("hello"), Request("q", [tmp_path / "gone.png"], name="scene 4")])


def test_a_watched_request_grows_to_the_text_of_an_unwatched_one(backend, images):
    sampling = Sampling(n=3, temperature=1.0, seed=5, max_new_tokens=12)
    told: list[list[str]] = []
    made = backend.watch(Request("", [images[1]]), sampling, lambda texts: told.append(texts) is not None)
    assert made.texts == backend.generate([Request("", [images[1]])], sampling)[0] == told[-1]
    assert len(told) > 5
    for earlier, later in itertools.pairwise(told):
        assert all(now.startswith(before.rstrip("\ufffd")) for before, now in zip(earlier, later, strict=True))


def test_a_watched_request_ends_when_its_reader_has_enough(backend, images):
    told: list[list[str]] = []

    def enough(texts: list[str]) -> bool:
        told.append(texts)
        return len(told) == 3

    whole = backend.generate([Request("", [images[1]])])[0][0]
    [text] = backend.watch(Request("", [images[1]]), Sampling(), enough).texts
    assert len(told) == 3
    assert told[-1] == [text]
    assert whole.startswith(text)
    assert len(text) < len(whole)


def test_a_watched_request_says_what_is_wrong_with_it(backend, tmp_path):
    made = backend.watch(Request("", [tmp_path / "none.png"]), Sampling(), lambda texts: False)
    assert (made.texts, made.error.kind) == ([], "missing_image")
    with pytest.raises(ValueError, match="5 texts, but only 4"):
        backend.watch(Request("hello"), Sampling(n=5, temperature=1.0), lambda texts: False)
