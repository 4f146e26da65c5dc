"""CLIP weights go from one library's layout to the other's and back, and mean the same in both."""

import json

import open_clip
import pytest
import torch
from transformers import CLIPTokenizer
from transformers.image_utils import PILImageResampling

from python_script.convert_clip import main
from src.errors import JobError
from src.model.clip import load_clip
from src.model.clip_layouts import model_of_weights, open_clip_weights, to_open_clip, to_transformers
from tests.model.clips import (
    TEXTS,
    TINY,
    open_clip_folder,
    open_clip_model,
    picture,
    siglip_folder,
    transformers_clip,
    transformers_folder,
    word_tokenizer,
)


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("other", [{}, {"quick_gelu": True, "custom_text": True}])
def test_from_open_clip_and_back(tmp_path, capsys, other):
    source = open_clip_folder(tmp_path / "a", TINY | other)
    main([str(source), str(tmp_path / "b"), "--to", "transformers"])
    assert "features of both differ by at most" in capsys.readouterr().out
    main([str(tmp_path / "b"), str(tmp_path / "c"), "--to", "open_clip"])
    a, b, c = (load_clip(tmp_path / name, device="cpu") for name in "abc")
    assert (a.backend, b.backend, c.backend) == ("open_clip", "transformers", "open_clip")
    given = {key.removeprefix("text."): value for key, value in a.model.state_dict().items()}
    assert_same(given, c.model.state_dict())
    pixels = torch.stack([a.preprocess(picture(seed)) for seed in range(4)])
    for clip in (b, c):
        assert (clip.image_features(pixels) - a.image_features(pixels)).abs().max() < 1e-5
        assert (clip.text_features(TEXTS) - a.text_features(TEXTS)).abs().max() < 1e-5
        assert clip.logit_scale == a.logit_scale
    # Pillow and torchvision agree to a grey level (1 / 255 / 0.26), in all but pixels
    seen = torch.stack([b.preprocess(picture(seed)) for seed in range(4)])
    assert (seen - pixels).abs().max() < 1.5 / 255 / 0.26
    assert (b.image_features(seen) - a.image_features(pixels)).abs().max() < 1e-3
    assert torch.equal(torch.stack([c.preprocess(picture(seed)) for seed in range(4)]), pixels)


def test_activation_matters():
    """The two activations differ enough for the comparison above to tell them apart."""
    state = open_clip_model().state_dict()
    pixels = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    found = [model_of_weights(state, TINY | {"quick_gelu": q}).get_image_features(pixels).pooler_output for q in (0, 1)]
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("begin_first", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
def test_from_transformers_with_a_vocabulary_of_its_own(tmp_path, begin_first, legacy):
    """Texts are pooled at the same token, whether the end is the greatest id or not, or the config is a legacy one."""
    tokenizer = word_tokenizer(begin_first)
    folder = transformers_folder(tmp_path / "a", tokenizer, eos=2 if legacy else None)
    main([str(folder), str(tmp_path / "b"), "--to", "open_clip"])
    main([str(tmp_path / "b"), str(tmp_path / "c"), "--to", "transformers"])
    a, b, c = (load_clip(tmp_path / name, device="cpu") for name in "abc")
    assert_same(a.model.state_dict(), c.model.state_dict())
    pixels = a.preprocess(picture())[None]
    for clip in (b, c):
        assert (clip.image_features(pixels) - a.image_features(pixels)).abs().max() < 1e-5
        assert (clip.text_features(TEXTS) - a.text_features(TEXTS)).abs().max() < 1e-5
    pooled = b.config["text_cfg"].get("pool_type", "argmax")
    assert pooled == ("eos" if begin_first and not legacy else "argmax")
    for kind in ("vision_config", "text_config"):
        before, after = (getattr(clip.model.config, kind) for clip in (a, c))
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps"):
            assert getattr(before, key) == getattr(after, key)
    # the library itself, without any of ours
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'b'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'b'}")(TEXTS)
    with torch.no_grad():
        assert torch.allclose(model.encode_text(tokens, normalize=True), a.text_features(TEXTS), atol=1e-5)
    assert transform(picture()).shape == (3, 32, 32)


def test_tokeniser_of_openai(tmp_path):
    clip = load_clip(open_clip_folder(tmp_path / "a"), device="cpu")
    model, processor = to_transformers(clip)
    assert isinstance(processor.tokenizer, CLIPTokenizer)
    texts = [*TEXTS, "Don't! 12 PLANES\n at N 48.1°, façade", "日本 🛩"]
    ours = clip.tokenizer(texts)
    theirs = processor.tokenizer(texts, padding="max_length", truncation=True, max_length=32, return_tensors="pt")
    # the ids agree up to the end of the text; after it open_clip writes 0, transformers the end again
    assert torch.equal(torch.where(theirs.attention_mask == 1, theirs.input_ids, 0), ours)
    assert model.config.text_config.eos_token_id == 49407
    made = to_open_clip(model, processor, tmp_path / "b")
    assert sorted(path.name for path in made.iterdir()) == ["open_clip_config.json", "open_clip_model.safetensors"]


def test_squashed_images_stay_squashed(tmp_path):
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    clip = load_clip(open_clip_folder(tmp_path / "a", TINY, preprocess), device="cpu")
    model, processor = to_transformers(clip)
    seen = processor.image_processor([picture()], return_tensors="pt").pixel_values[0]
    assert (seen - clip.preprocess(picture())).abs().max() < 1.5 / 255 / 0.5
    config = json.loads((to_open_clip(model, processor, tmp_path / "b") / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"] == preprocess


@pytest.mark.parametrize(
    ("vision", "text", "named"),
    [
        ({"timm_model_name": "vit"}, {}, "vision_cfg.timm_model_name"),
        ({"ls_init_value": 0.1}, {}, "vision_cfg.ls_init_value"),
        ({"pool_type": "avg"}, {}, "vision_cfg.pool_type"),
        ({"norm_kwargs": {"bias": False}}, {}, "vision_cfg.norm_kwargs"),
        ({}, {"no_causal_mask": True}, "text_cfg.no_causal_mask"),
        ({}, {"pool_type": "last"}, "text_cfg.pool_type"),
        ({}, {"pool_type": "eos", "eos_id": 2}, "greatest token"),
    ],
)
def test_other_architectures_are_refused_by_name(vision, text, named):
    config = {
        "embed_dim": 24,
        "vision_cfg": TINY["vision_cfg"] | vision,
        "text_cfg": TINY["text_cfg"] | text,
    }
    with pytest.raises(JobError, match=named):
        model_of_weights(open_clip_model().state_dict(), config)


def test_missing_and_surplus_weights_are_named():
    state = open_clip_model().state_dict()
    missing = {key: value for key, value in state.items() if key != "transformer.resblocks.1.mlp.c_fc.bias"}
    with pytest.raises(JobError, match=r"transformer\.resblocks\.1\.mlp\.c_fc\.bias.* is missing"):
        model_of_weights(missing, TINY)
    with pytest.raises(JobError, match="no place for logit_bias"):
        model_of_weights(state | {"logit_bias": torch.zeros(())}, TINY)
    assert_same(open_clip_weights(model_of_weights(state, TINY)), dict(state))


def test_what_open_clip_lacks_is_refused(tmp_path):
    model, processor = transformers_clip(word_tokenizer(), hidden_act="relu")
    with pytest.raises(JobError, match="not relu"):
        to_open_clip(model, processor, tmp_path / "a")
    model, processor = transformers_clip(word_tokenizer())
    with pytest.raises(JobError, match="is no CLIPModel"):
        to_open_clip(model.text_model, processor, tmp_path / "a")
    processor.image_processor.resample = PILImageResampling.LANCZOS
    with pytest.raises(JobError, match="image processor does otherwise"):
        to_open_clip(model, processor, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_program_refuses_what_makes_no_sense(tmp_path, capsys):
    source = open_clip_folder(tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    siglip = siglip_folder(tmp_path / "siglip")
    for arguments, message in (
        ([source, tmp_path / "b", "--to", "open_clip"], "is of open_clip already"),
        ([source, tmp_path / "full", "--to", "transformers"], "holds something already"),
        ([siglip, tmp_path / "b", "--to", "open_clip"], "is no CLIPModel"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
