"""Converted checkpoints compute what the published loaders do, and what a plain forward makes of the published weights.

Every case of the fixture, as intended and as published; its README has the order of computation and the tolerances.
"""

import hashlib
import json
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import pad
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from src.chat import prompt_messages, render
from src.dataset.images import open_image
from src.model.vlm.lhrs import sine_positions
from tests.conftest import PUBLISHED_VLMS
from tests.model.vlm import plain_vlm as plain

LLAVAS = ("geochat", "skysensegpt", "vhm")
LHRS = "lhrsbot_nova"
FAMILIES = (*LLAVAS, LHRS)
CASES = ("1_cls", "2_vqa", "3_bbox", "4_lhrs", "5_vqa", "6_bbox", "7_cls")
# The conversion that has a variant's weights, and the one whose prompts it is asked with.
VARIANTS = {
    "intended": ("intended", "intended"),
    "published": ("published", "published"),
    "stock_tower_with_bos": ("published", "intended"),
    "checkpoint_tower_without_bos": ("intended", "published"),
}
TOWERS = {"intended": "checkpoint", "published": "stock"}


def near(made, wanted, tolerance=1e-4):
    made = made.detach()
    assert made.shape == wanted.shape
    assert torch.isfinite(made).all()
    assert float((made - wanted).abs().max()) <= tolerance


@cache
def cases_of(family):
    told = json.loads((PUBLISHED_VLMS / family / "cases.json").read_text())
    return told | {"cases": {case["name"]: case for case in told["cases"]}}


@cache
def arrays_of(family):
    return load_file(PUBLISHED_VLMS / family / "tensors.safetensors")


@pytest.fixture(scope="module")
def loaded(converted_vlm):
    """Model, processor and what loading told, of a family and conversion."""

    @cache
    def load(family, compat="intended"):
        folder = converted_vlm(family, compat)
        model, told = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        return model.eval(), AutoProcessor.from_pretrained(folder, backend="pil"), told

    return load


def inputs_of(processor, family, name):
    case = cases_of(family)["cases"][name]
    image = open_image(PUBLISHED_VLMS / family / "images" / case["image"])
    text = render(processor, prompt_messages(case["assembled_query"], [image]), open_turn=True)
    return processor(text=[text], images=[image], return_tensors="pt", add_special_tokens=False)


def ids_of(inputs, model):
    """The ids with one placeholder for the image, as the published loaders have them."""
    ids, image = inputs["input_ids"][0].tolist(), model.config.image_token_id
    at = ids.index(image)
    return [*ids[:at], -200, *[token for token in ids[at:] if token != image]]


@pytest.fixture(scope="module")
def features(loaded):
    """``(family, compat)`` to the image tokens of each image."""

    @cache
    def encode(family, compat):
        model, processor, _ = loaded(family, compat)
        names = list(cases_of(family)["image_info"])
        shown = [open_image(PUBLISHED_VLMS / family / "images" / name) for name in names]
        with torch.inference_mode():
            made = model.get_image_features(**processor.image_processor(images=shown, return_tensors="pt"))
        return dict(zip(names, made.pooler_output, strict=True))

    return encode


def side_by_side(alone):
    """Ids and mask of several inputs, filled on the left with the id 0."""
    longest = max(inputs["input_ids"].shape[1] for inputs in alone)
    filled = [(longest - inputs["input_ids"].shape[1], 0) for inputs in alone]
    return {
        key: torch.cat([pad(inputs[key], more) for inputs, more in zip(alone, filled, strict=True)])
        for key in ("input_ids", "attention_mask")
    }


def check_variant(model, family, variant, alone, features):
    """Ids, logits and greedy ids of all cases, which are answered in one batch."""
    cases, arrays = cases_of(family)["cases"], arrays_of(family)
    shown = BaseModelOutputWithPooling(pooler_output=[features[cases[name]["image"]] for name in CASES])
    given = side_by_side(alone) | {"mm_encoder_outputs": {"image": shown}}
    made = model.generate(**given, max_new_tokens=8, return_dict_in_generate=True, output_logits=True)
    answers = made.sequences[:, given["input_ids"].shape[1] :].tolist()
    for name, inputs, logits, answer in zip(CASES, alone, made.logits[0], answers, strict=True):
        result = cases[name]["results"][variant]
        assert ids_of(inputs, model) == result["input_ids"], name
        assert inputs["input_ids"].shape[1] == result["sequence_length"], name
        near(logits[: model.config.image_token_id], arrays[f"logits/{variant}/{name}"])
        assert answer[: len(result["greedy_ids"])] == result["greedy_ids"], name


@torch.inference_mode()
def logits_of(model, **inputs):
    """After the prompts, without those of the image's token."""
    return model(**inputs, logits_to_keep=1).logits[:, 0, : model.config.image_token_id]


def check_case(model, inputs, result, logits):
    """Ids, logits and greedy ids of one case."""
    assert ids_of(inputs, model) == result["input_ids"]
    assert inputs["input_ids"].shape[1] == result["sequence_length"]
    made = model.generate(**inputs, max_new_tokens=8, return_dict_in_generate=True, output_logits=True)
    near(made.logits[0][0, : model.config.image_token_id], logits)
    assert made.sequences[0, inputs["input_ids"].shape[1] :].tolist() == result["greedy_ids"]


@pytest.mark.parametrize("compat", ["intended", "published"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_used_and_none_is_missing(loaded, family, compat):
    model, _, told = loaded(family, compat)
    assert not any(told.values())
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels(loaded, family):
    processor = loaded(family)[1].image_processor
    for name, info in cases_of(family)["image_info"].items():
        image = open_image(PUBLISHED_VLMS / family / "images" / name)  # one is grey, and becomes RGB
        made = processor(images=[image], return_tensors="pt")["pixel_values"][0]
        shown = np.asarray(Image.open(PUBLISHED_VLMS / family / "pixels" / name)) / 255
        near(made, torch.tensor((shown - processor.image_mean) / processor.image_std).permute(2, 0, 1).float(), 1e-5)
        assert hashlib.sha256(made.numpy().tobytes()).hexdigest() == info["sha256_float32"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", LLAVAS)
def test_llava_cases(loaded, features, family, variant):
    weights, prompts = VARIANTS[variant]
    alone = [inputs_of(loaded(family, prompts)[1], family, name) for name in CASES]
    check_variant(loaded(family, weights)[0], family, variant, alone, features(family, weights))


@pytest.mark.parametrize("variant", ["intended", "published", "two_bos"])
def test_lhrs_cases(loaded, features, variant):
    compat = "published" if variant == "published" else "intended"
    model, processor, _ = loaded(LHRS, compat)
    alone = [inputs_of(processor, LHRS, name) for name in CASES]
    if variant == "two_bos":
        begin = processor.tokenizer.bos_token_id
        more = {"input_ids": begin, "attention_mask": 1}
        alone = [{key: pad(inputs[key], (1, 0), value=value) for key, value in more.items()} for inputs in alone]
    check_variant(model, LHRS, variant, alone, features(LHRS, compat))


@pytest.mark.parametrize("compat", ["intended", "published"])
@pytest.mark.parametrize("family", LLAVAS)
def test_llava_features(loaded, family, compat):
    model, processor, _ = loaded(family, compat)
    arrays, tower = arrays_of(family), TOWERS[compat]
    near(model.model.vision_tower.embeddings.position_embedding.weight, arrays[f"position_table/{tower}"])
    entered = []
    hook = model.model.multi_modal_projector.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    images = list(cases_of(family)["image_info"])
    shown = [open_image(PUBLISHED_VLMS / family / "images" / name) for name in images]
    with torch.inference_mode():
        made = model.get_image_features(**processor.image_processor(images=shown, return_tensors="pt")).pooler_output
    hook.remove()
    for name, features, selected in zip(images, made, entered[0], strict=True):
        near(selected[::5], arrays[f"selected_rows/{tower}/{name}"])
        near(features[::5], arrays[f"features_rows/{tower}/{name}"])
        near(features.norm(dim=-1), arrays[f"features_norm/{tower}/{name}"])


def test_lhrs_features(loaded):
    model, processor, _ = loaded(LHRS)
    arrays = arrays_of(LHRS)
    near(sine_positions(27, 32)[::7], arrays["query_position_table"])
    images = list(cases_of(LHRS)["image_info"])
    shown = [open_image(PUBLISHED_VLMS / LHRS / "images" / name) for name in images]
    entered = []
    hook = model.model.multi_modal_projector.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    with torch.inference_mode():
        made = model.get_image_features(**processor.image_processor(images=shown, return_tensors="pt")).pooler_output
    hook.remove()
    for name, features, states in zip(images, made, entered[0], strict=True):
        near(torch.cat(states.chunk(3, -1))[::11], arrays[f"stage_rows/{name}"])
        near(features, arrays[f"features/{name}"])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_not_looked_at(loaded, family):
    """A row of a batch is what it is alone; with the published mask, all ones, it is what was published."""
    arrays, names = arrays_of(family), cases_of(family)["padded_batch"]["cases"]
    model, processor, _ = loaded(family, "published")
    alone = [inputs_of(processor, family, name) for name in names]
    mask = side_by_side(alone)["attention_mask"]
    assert not mask.all()
    given = {
        "input_ids": side_by_side(alone)["input_ids"],
        "pixel_values": torch.cat([inputs["pixel_values"] for inputs in alone]),
    }
    places = (mask.cumsum(1) - 1).clamp(min=0)
    near(
        logits_of(model, **given, attention_mask=mask, position_ids=places),
        torch.stack([arrays[f"logits/published/{name}"] for name in names]),
    )
    near(
        logits_of(model, **given, attention_mask=torch.ones_like(mask)),
        torch.stack([arrays[f"logits/padded_batch/{name}"] for name in names]),
    )


@cache
def plain_features(family, tower, name):
    """Image features by the plain forward, from the pixels of the fixture."""
    folder = PUBLISHED_VLMS / family
    shown = torch.tensor(np.asarray(Image.open(folder / "pixels" / name)) / 255.0)
    scale = json.loads((folder / "stock_tower" / "preprocessor_config.json").read_text())
    pixels = ((shown - torch.tensor(scale["image_mean"])) / torch.tensor(scale["image_std"])).permute(2, 0, 1).float()
    vision = json.loads((folder / "stock_tower" / "config.json").read_text())["vision_config"]
    held, heads = plain.read(folder / "checkpoint"), vision["num_attention_heads"]
    if family == LHRS:
        final = torch.load(folder / "checkpoint" / "FINAL.pt", weights_only=True)["model"]
        states = plain.tower_states(
            plain.below(final["rgb_ckpt"], "encoder.vision_model."), pixels, heads, plain.tanh_gelu, 1e-6, 27
        )
        return plain.resampled(final["other_ckpt"]["rgb_pooler"], [states[layer] for layer in (2, 4, 5)])
    own = plain.below(held, "model.vision_tower.vision_tower.vision_model.")
    stock = plain.below(plain.read(folder / "stock_tower"), "vision_model.")
    layers = json.loads((folder / "checkpoint" / "config.json").read_text())["mm_vision_select_layer"]
    return plain.llava_features(held, own if tower == "checkpoint" else stock, pixels, layers, heads)


@cache
def plain_text(family):
    folder = PUBLISHED_VLMS / family
    if family != LHRS:
        return plain.read(folder / "checkpoint"), json.loads((folder / "checkpoint" / "config.json").read_text())
    lora = folder / "checkpoint" / "TextLoRA"
    settings = json.loads((lora / "adapter_config.json").read_text())
    merged = plain.with_lora(plain.read(folder / "text_base"), plain.read(lora), settings["lora_alpha"])
    return merged, json.loads((folder / "text_base" / "config.json").read_text())


@pytest.mark.parametrize("compat", ["intended", "published"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_plain_forward_gives_the_same_logits(loaded, family, compat):
    model, processor, _ = loaded(family, compat)
    weights, config = plain_text(family)
    for name in ("1_cls", "3_bbox", "7_cls") if compat == "intended" else CASES[:1]:
        inputs = inputs_of(processor, family, name)
        image = plain_features(family, TOWERS[compat], cases_of(family)["cases"][name]["image"])
        logits = plain.llama_logits(weights, plain.embedded(weights, ids_of(inputs, model), image), config)
        near(logits, arrays_of(family)[f"logits/{compat}/{name}"])
        near(logits_of(model, **inputs)[0], logits)
