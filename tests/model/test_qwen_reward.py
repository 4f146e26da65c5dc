"""The score model against the numbers of the published class, and the three layouts that it loads."""

import json
import logging
import shutil

import pytest
import torch
from qwen_vl_utils import process_vision_info
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig

from src.errors import JobError
from src.model.checkpoint import HEAD, checkpoint_keys, usable_attention
from src.model.nano import backbone
from src.model.qwen_reward import Qwen2Reward
from tests.conftest import LEGACY

CASES = json.loads((LEGACY / "cases.json").read_text())
RANKING = json.loads((LEGACY / "ranking.json").read_text())
VISION = load_file(LEGACY / "vision.safetensors")
SCHEMES = {"mrope": "values", "sequential": "values_second_forward"}


def inputs_of(case: dict) -> dict[str, torch.Tensor]:
    names = [name for row in case["rows"] for name in row["images"]]
    ids = torch.tensor(case["input_ids"])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "attention_mask" in case:
        inputs["attention_mask"] = torch.tensor(case["attention_mask"])
    if names:
        inputs["pixel_values"] = torch.cat([VISION[f"pixel_values/{name}"] for name in names])
        inputs["image_grid_thw"] = torch.cat([VISION[f"image_grid_thw/{name}"].view(-1, 3) for name in names])
    return inputs


@pytest.fixture(scope="module", params=SCHEMES)
def model(request) -> Qwen2Reward:
    return Qwen2Reward.from_pretrained(LEGACY / "checkpoint", position_scheme=request.param).eval()


def by_name(cases):
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


@by_name(CASES["cases"])
def test_values_of_the_published_class(model, case):
    with torch.inference_mode():
        values = model(**inputs_of(case), return_loss=False).values
        again = model(**inputs_of(case), return_loss=False).values
    expected = torch.tensor(case[SCHEMES[model.config.position_scheme]])
    torch.testing.assert_close(values, expected, atol=1e-4, rtol=0)
    assert torch.equal(values, again), "a score must not depend on what was scored before"


@by_name([case for case in CASES["cases"] if "position_ids" in case])
def test_positions_of_the_published_class(model, case):
    inputs = inputs_of(case)
    real = inputs["attention_mask"].bool()
    places = model.positions(inputs["input_ids"], inputs["attention_mask"], inputs.get("image_grid_thw"))
    if model.config.position_scheme == "mrope":
        assert torch.equal(places[:, real], torch.tensor(case["position_ids"])[:, real])
    else:
        for row, kept in zip(places[0], real, strict=True):
            assert row[kept].tolist() == list(range(int(kept.sum())))


@by_name([case for case in CASES["quirks"] if "left_padding" in case["name"]])
def test_left_padding_gives_the_same_scores(model, case):
    with torch.inference_mode():
        values = model(**inputs_of(case)).values
    torch.testing.assert_close(values, torch.tensor(case[SCHEMES[model.config.position_scheme]]), atol=1e-4, rtol=0)


@by_name([case for case in CASES["quirks"] if "written_in_the_text" in case["name"]])
def test_a_pad_token_in_the_text_cuts_nothing(model, case):
    """The published class pooled before it; here the whole answer counts, so changing its end changes the score."""
    inputs = inputs_of(case)
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][0, -4] = 300
    with torch.inference_mode():
        whole, other = model(**inputs).values, model(**changed).values
    assert abs(whole - torch.tensor(case[SCHEMES[model.config.position_scheme]])).item() > 1e-3
    assert abs(whole - other).item() > 1e-3


@by_name([case for case in CASES["quirks"] if "im_end" in case["name"]])
def test_pad_token_of_the_best_of_n_scripts_does_not_make_scores_equal(model, case):
    inputs = inputs_of(case)
    with torch.inference_mode():
        values = model(**inputs).values
    assert values.unique().numel() == len(values)


@by_name(RANKING["batches"])
def test_losses_and_gradients_of_the_published_class(case):
    model = Qwen2Reward.from_pretrained(
        LEGACY / "checkpoint", position_scheme="mrope", ranked_candidate_num=case["ranked_candidate_num"]
    )
    output = model(**inputs_of(case), return_loss=True)
    torch.testing.assert_close(output.loss.item(), case["loss"], atol=1e-4, rtol=0)
    output.loss.backward()
    norms = {
        "reward_head.weight": model.reward_head.weight.grad,
        "visual.patch_embed.proj.weight": model.model.visual.patch_embed.proj.weight.grad,
        "all_parameters": torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]),
    }
    for name, gradient in norms.items():
        expected = case["grad_l2_norm"].get(name)
        if expected is not None and gradient is not None:
            torch.testing.assert_close(gradient.norm().item(), expected, rtol=1e-4, atol=1e-6)


def test_rows_left_over_after_whole_groups_are_refused():
    (case,) = (case for case in RANKING["quirks"] if "leftover" in case["name"])
    model = Qwen2Reward.from_pretrained(LEGACY / "checkpoint")
    with pytest.raises(ValueError, match="5 rows are not whole groups of ranked_candidate_num = 2"):
        model(**inputs_of(case), return_loss=True)
    assert model(**inputs_of(case)).loss is None


def test_image_features_of_the_published_class(model):
    for name in (key.removeprefix("image_embeds/") for key in VISION if key.startswith("image_embeds/")):
        grid = VISION[f"image_grid_thw/{name}"].view(-1, 3)
        (features,) = model.encode_images(VISION[f"pixel_values/{name}"], grid)
        torch.testing.assert_close(features, VISION[f"image_embeds/{name}"], atol=1e-4, rtol=0)


def test_the_layout_decides_the_position_scheme(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        published = Qwen2Reward.from_pretrained(LEGACY / "checkpoint")
    assert published.config.position_scheme == "sequential"
    assert "published layout, sequential positions" in caplog.text

    published.save_pretrained(tmp_path / "kept")
    assert all(
        key.startswith(("model.visual.", "model.language_model.", HEAD)) for key in checkpoint_keys(tmp_path / "kept")
    )
    assert Qwen2Reward.from_pretrained(tmp_path / "kept").config.position_scheme == "sequential"

    config = json.loads((tmp_path / "kept" / "config.json").read_text())
    del config["position_scheme"]
    (tmp_path / "kept" / "config.json").write_text(json.dumps(config))
    ours = Qwen2Reward.from_pretrained(tmp_path / "kept")
    assert ours.config.position_scheme == "mrope"
    for name, weight in published.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[name]), name


@pytest.mark.parametrize("old_keys", [True, False])
def test_a_plain_qwen2_vl_checkpoint_gets_a_new_head(tmp_path, caplog, old_keys):
    config = Qwen2VLConfig.from_pretrained(LEGACY / "checkpoint")
    plain = Qwen2VLForConditionalGeneration(config)
    plain.save_pretrained(tmp_path, save_original_format=old_keys)
    assert any(key.startswith("visual.") for key in checkpoint_keys(tmp_path)) == old_keys
    with caplog.at_level(logging.WARNING):
        model = Qwen2Reward.from_pretrained(tmp_path)
    assert "reward head is new and untrained" in caplog.text
    assert model.config.position_scheme == "mrope"
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, model.model.state_dict()[name]), name


def test_a_score_model_gives_back_its_backbone(tmp_path):
    """Saved as plain Qwen2-VL with tied embeddings, it generates, and takes a new head as any other does."""
    model = Qwen2Reward.from_pretrained("assets/nano/scorer", dtype=torch.float32)
    plain = backbone(model)
    assert plain.lm_head.weight is model.get_input_embeddings().weight
    plain.save_pretrained(tmp_path)
    assert "lm_head.weight" not in checkpoint_keys(tmp_path)
    loaded = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.tensor([[20, 40, 60]])
    logits = loaded(input_ids=ids).logits
    hidden = model(input_ids=ids, return_dict=False, return_loss=False)[1]
    torch.testing.assert_close(logits, hidden @ model.get_input_embeddings().weight.T, rtol=1e-4, atol=1e-4)
    assert Qwen2Reward.from_pretrained(tmp_path).config.position_scheme == "mrope"


def _edited_checkpoint(folder, edit):
    shutil.copytree(LEGACY / "checkpoint", folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    save_file(edit(weights), folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_checkpoint_with_missing_weights_is_refused_by_name(tmp_path):
    lost = "model.layers.1.mlp.up_proj.weight"
    folder = _edited_checkpoint(tmp_path, lambda w: {k: v for k, v in w.items() if k != lost})
    with pytest.raises(
        JobError, match=r"1 weights uninitialised: model\.language_model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        Qwen2Reward.from_pretrained(folder)


def test_a_checkpoint_with_a_foreign_prefix_is_refused(tmp_path):
    folder = _edited_checkpoint(tmp_path, lambda w: {k.replace("model.", "language."): v for k, v in w.items()})
    with pytest.raises(JobError, match="weights uninitialised"):
        Qwen2Reward.from_pretrained(folder)


def test_a_score_model_without_its_head_is_refused(tmp_path):
    folder = _edited_checkpoint(tmp_path, lambda w: {k: v for k, v in w.items() if k != HEAD})
    with pytest.raises(JobError, match=r"no reward_head\.weight"):
        Qwen2Reward.from_pretrained(folder)


def test_no_such_model_and_no_such_scheme(tmp_path):
    with pytest.raises(JobError, match="no model at"):
        Qwen2Reward.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(JobError, match="holds no weights"):
        Qwen2Reward.from_pretrained(tmp_path)
    with pytest.raises(JobError, match="position_scheme is 'polar'"):
        Qwen2Reward.from_pretrained(LEGACY / "checkpoint", position_scheme="polar")


def test_flash_attention_falls_back_and_says_so_once(caplog):
    usable_attention.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert usable_attention("flash_attention_2", False) == "sdpa"
        assert usable_attention("flash_attention_2", False) == "sdpa"
    assert caplog.text.count("SDPA") == 1
    assert usable_attention("eager", True) == "eager"


def test_the_published_readme_snippet():
    path = str(LEGACY / "checkpoint")
    processor = AutoProcessor.from_pretrained(path)
    processor.tokenizer.padding_side = "right"
    model_config = Qwen2VLConfig.from_pretrained(path)
    model_config.pad_token_id = processor.tokenizer.pad_token_id
    model_config.ranked_candidate_num = 1
    model = Qwen2Reward.from_pretrained(
        path,
        config=model_config,
        torch_dtype=torch.float32,
        attn_implementation="flash_attention_2",
        device_map="cpu",
    )
    image_path = str(LEGACY / "images" / "harbour.png")
    content = [{"type": "image", "image": image_path}, {"type": "text", "text": "A satellite image airport"}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    image_inputs, video_inputs = process_vision_info(messages)
    inputs = processor(text=[text], images=image_inputs, videos=video_inputs, padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs.to(model.device), return_dict=True, return_loss=False)
    assert outputs.value.shape == (1,)
    assert outputs.value is outputs.values
    assert outputs.value.item() > 0
