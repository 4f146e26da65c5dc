"""A score depends on the pair, the weights, the template and the position scheme, and on nothing else."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from src.chat import pair_messages, render, turn_messages
from src.curation import scorer as scorer_module
from src.curation.scorer import Scorer
from src.dataset.collate import PairEncoder
from src.errors import JobError, RecordError
from tests.conftest import LEGACY

IMAGES = sorted(str(path) for path in (LEGACY / "images").glob("*.png"))
TEXTS = st.text(min_size=1, max_size=60).filter(lambda text: text.strip() and "<image>" not in text)
PAIRS = st.fixed_dictionaries(
    {
        "images": st.lists(st.sampled_from(IMAGES), max_size=2),
        "question": st.sampled_from(["", "How many ships?", "Wo? 在哪里"]),
        "text": TEXTS | st.sampled_from(["a b", "a b c", "a b d", "two ships <|endoftext|> near a pier"]),
    }
)


def plain_score(scorer: Scorer, pair: dict) -> float:
    """The slow, obvious twin: one row, the checkpoint's own processor, one forward."""
    images = [Image.open(path).convert("RGB") for path in pair["images"]]
    text = render(scorer.encoder.processor.tokenizer, pair_messages(images, pair["text"], pair["question"]))
    inputs = scorer.encoder.processor(text=[text], images=images or None, return_tensors="pt")
    with torch.inference_mode():
        return scorer.model(**inputs, return_loss=False).values.item()


@pytest.fixture(scope="module", params=["mrope", "sequential"])
def tiny_scorer(request) -> Scorer:
    return Scorer.from_pretrained(LEGACY / "checkpoint", device="cpu", workers=2, position_scheme=request.param)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(PAIRS, min_size=1, max_size=12), budget=st.sampled_from([1, 200, 8192]), order=st.randoms())
def test_score_is_independent_of_company_order_batch_and_history(tiny_scorer, pairs, budget, order):
    alone = [plain_score(tiny_scorer, pair) for pair in pairs]
    scorer = Scorer(tiny_scorer.model, tiny_scorer.encoder, token_budget=budget, workers=1)
    assert scorer.score(pairs) == pytest.approx(alone, abs=1e-5)
    shuffled = list(range(len(pairs)))
    order.shuffle(shuffled)
    scores = dict(zip(shuffled, tiny_scorer.score([pairs[i] for i in shuffled]), strict=True))
    assert [scores[i] for i in range(len(pairs))] == pytest.approx(alone, abs=1e-5)


def test_candidates_share_a_prefix_and_score_as_if_alone(tiny_scorer):
    answers = ["two", "two ships", "two ships near a pier", "\nthree", "two"]
    alone = [plain_score(tiny_scorer, {"images": IMAGES[:2], "question": "?", "text": a}) for a in answers]
    assert tiny_scorer.score_candidates(IMAGES[:2], "?", answers) == pytest.approx(alone, abs=1e-5)


def test_an_image_is_encoded_once_however_many_texts_share_it(tiny_scorer, monkeypatch):
    encoded = []
    original = tiny_scorer.model.encode_images

    def spy(pixel_values, grids):
        encoded.append(len(grids))
        return original(pixel_values, grids)

    monkeypatch.setattr(tiny_scorer.model, "encode_images", spy)
    data = Path(IMAGES[0]).read_bytes()
    tiny_scorer.score([{"image": data, "text": f"caption {i}"} for i in range(7)] + [{"image": IMAGES[1], "text": "x"}])
    assert sum(encoded) == 2


def test_the_next_window_is_decoded_and_tokenised_while_the_model_works(tiny_scorer, monkeypatch):
    tokenised = [threading.Event() for _ in range(3)]
    waiting, original, tokens = iter(tokenised), scorer_module.score_rows, PairEncoder.token_ids
    worked = []

    def token_ids(encoder, prompts):
        found = tokens(encoder, prompts)
        next(waiting).set()
        return found

    def score_rows(model, images, rows, *rest):
        following = min(len(worked) + 1, 2)
        worked.append(tokenised[following].wait(30) and not any(later.is_set() for later in tokenised[following + 1 :]))
        return original(model, images, rows, *rest)

    monkeypatch.setattr(PairEncoder, "token_ids", token_ids)
    monkeypatch.setattr(scorer_module, "score_rows", score_rows)
    windows = [[{"image": IMAGES[0], "text": f"caption {number}"}] for number in range(3)]
    assert [len(results) for results in tiny_scorer.stream(windows)] == [1, 1, 1]
    assert worked == [True, True, True]


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_recomputed_pixels_are_within_one_grey_level_and_explain_the_score(tiny_scorer, backend):
    """One grey level is at most 0.0151 after normalisation, and two roundings may meet (0.031).

    The score moves by what the pixels' differences explain to first order, sum of d score / d pixel x difference.
    """
    stored = load_file(LEGACY / "vision.safetensors")
    processor = AutoImageProcessor.from_pretrained(LEGACY / "checkpoint", backend=backend)
    case = next(
        c for c in json.loads((LEGACY / "cases.json").read_text())["cases"] if c["name"] == "caption_tall_image"
    )
    ids = torch.tensor(case["input_ids"])
    for path in map(Path, IMAGES):
        exact = stored[f"pixel_values/{path.name}"]
        ours = processor(images=[Image.open(path).convert("RGB")], return_tensors="pt")["pixel_values"]
        assert (ours - exact).abs().max() < 0.031, path.name
    exact = stored["pixel_values/tanks.png"].requires_grad_()
    ours = processor(images=[Image.open(LEGACY / "images" / "tanks.png")], return_tensors="pt")["pixel_values"]
    grid = torch.tensor(case["image_grid_thw"])
    value = tiny_scorer.model(ids, pixel_values=exact, image_grid_thw=grid).values
    (gradient,) = torch.autograd.grad(value.sum(), exact)
    field = {"mrope": "values", "sequential": "values_second_forward"}[tiny_scorer.model.config.position_scheme]
    assert value.item() == pytest.approx(case[field][0], abs=1e-4)
    moved = tiny_scorer.model(ids, pixel_values=ours, image_grid_thw=grid).values
    explained = (gradient * (ours - exact)).sum().item()
    assert abs(explained) > 1e-3
    assert (moved - value).item() == pytest.approx(explained, abs=0.01)


def test_scheme_and_template_are_what_was_asked_for():
    scores = {
        (scheme, template): Scorer.from_pretrained(
            LEGACY / "checkpoint", device="cpu", template=template, position_scheme=scheme
        ).score([{"image": IMAGES[0], "text": "a harbour"}])[0]
        for scheme in ("mrope", "sequential")
        for template in ("answer", "published_readme")
    }
    assert len({round(score, 3) for score in scores.values()}) == 4


def test_conversations_are_scored_as_rendered(tiny_scorer):
    turns = [
        {"role": "user", "content": "<image>\nWhat is it?"},
        {"role": "assistant", "content": "A harbour."},
        {"role": "user", "content": "How many ships?"},
        {"role": "assistant", "content": "Four."},
    ]
    image = Image.open(IMAGES[0]).convert("RGB")
    text = render(tiny_scorer.encoder.processor.tokenizer, turn_messages(turns, [image]))
    inputs = tiny_scorer.encoder.processor(text=[text], images=[image], return_tensors="pt")
    with torch.inference_mode():
        expected = tiny_scorer.model(**inputs).values.tolist()
    assert tiny_scorer.score([{"images": [IMAGES[0]], "turns": turns}]) == pytest.approx(expected, abs=1e-5)


def test_the_first_bad_pair_is_named_and_stream_goes_on(tiny_scorer):
    pairs = [{"image": IMAGES[0], "text": "fine"}, {"image": "nowhere.png", "text": "lost"}, {"text": "only text"}]
    with pytest.raises(RecordError, match=r"pair 1: .*nowhere\.png") as caught:
        tiny_scorer.score(pairs)
    assert caught.value.kind == "missing_image"
    (results,) = tiny_scorer.stream([pairs])
    assert [result.error.kind if result.error else "ok" for result in results] == ["ok", "missing_image", "ok"]
    assert (results[0].width, results[0].height) == Image.open(IMAGES[0]).size


@pytest.mark.parametrize(
    ("pair", "kind"),
    [
        ({"image": IMAGES[0], "text": "  "}, "empty_text"),
        ({"image": IMAGES[0], "text": None}, "empty_text"),
        ({"image": IMAGES[0], "text": 7}, "bad_record"),
        ({"image": IMAGES[0], "images": [], "text": "x"}, "bad_record"),
        ({"images": IMAGES[0], "text": "x"}, "bad_record"),
        ({"image": IMAGES[0], "text": "so <|image_pad|> many"}, "reserved_token"),
        ({"image": IMAGES[0], "text": "ship " * 20_000}, "text_too_long"),
        ({"image": IMAGES[0], "text": "z" * 3_000_000}, "text_too_long"),
        ({"image": b"not an image", "text": "x"}, "unreadable_image"),
        ({"image": "https://example.org/a.png", "text": "x"}, "unsafe_path"),
    ],
)
def test_bad_pairs(tiny_scorer, pair, kind):
    ((result, good),) = tiny_scorer.stream([[pair, {"image": IMAGES[0], "text": "fine"}]])
    assert result.error is not None
    assert result.error.kind == kind
    assert good.score == pytest.approx(tiny_scorer.score([{"image": IMAGES[0], "text": "fine"}])[0], abs=1e-5)


def test_right_to_left_and_odd_text_is_scored(tiny_scorer):
    texts = ["ميناء به سفن", "\u202ereversed", "e\u0301\u0000\ud7ff", "🛰️" * 50]
    assert all(score > 0 for score in tiny_scorer.score([{"image": IMAGES[0], "text": t} for t in texts]))


def test_root_is_enforced_and_size_limit_passed_on(tiny_scorer):
    scorer = tiny_scorer.rooted(LEGACY / "images")
    assert scorer.score([{"image": "harbour.png", "text": "x"}]) == pytest.approx(
        tiny_scorer.score([{"image": LEGACY / "images" / "harbour.png", "text": "x"}]), abs=1e-5
    )
    with pytest.raises(RecordError) as caught:
        scorer.score([{"image": "../cases.json", "text": "x"}])
    assert caught.value.kind == "unsafe_path"
    small = replace(tiny_scorer.encoder.limits, max_pixels=100)
    limited = Scorer(tiny_scorer.model, replace(tiny_scorer.encoder, limits=small))
    with pytest.raises(RecordError, match="pixels"):
        limited.score([{"image": IMAGES[0], "text": "x"}])


def test_a_score_that_is_no_number_is_an_error(tiny_scorer, monkeypatch):
    monkeypatch.setattr("src.curation.scorer.score_rows", lambda model, images, rows, *rest: [float("nan")] * len(rows))
    ((result,),) = tiny_scorer.stream([[{"image": IMAGES[0], "text": "x"}]])
    assert result.score is None
    assert result.error.kind == "not_finite"


def test_one_image_need_not_be_in_a_list(tiny_scorer):
    path = LEGACY / "images" / "harbour.png"
    expected = tiny_scorer.score_candidates([path], "?", ["one", "two"])
    assert tiny_scorer.score_candidates(path, "?", ["one", "two"]) == expected
    assert tiny_scorer.score_candidates(Image.open(path), "?", ["one", "two"]) == pytest.approx(expected, abs=1e-5)


def test_images_that_fill_the_context_are_named_as_the_cause(tiny_scorer):
    tight = Scorer(tiny_scorer.model, replace(tiny_scorer.encoder, max_tokens=50))
    with pytest.raises(RecordError, match="image tokens; the limit is 50") as caught:
        tight.score([{"image": LEGACY / "images" / "city_large.png", "text": "x"}])
    assert caught.value.kind == "image_too_large"


def test_max_pixels_shrinks_images():
    small = Scorer.from_pretrained(LEGACY / "checkpoint", device="cpu", max_pixels=56 * 56)
    assert small.encoder.image(LEGACY / "images" / "city_large.png").grid[1] <= 4


def test_models_that_are_none(tmp_path):
    with pytest.raises(JobError, match="no model at"):
        Scorer.from_pretrained(tmp_path / "nowhere")
    Scorer.from_pretrained(LEGACY / "checkpoint").model.save_pretrained(tmp_path / "bare")
    with pytest.raises(JobError, match=r"no usable processor|lacks"):
        Scorer.from_pretrained(tmp_path / "bare")
