"""Dual encoders of both libraries behind one face: the same weights give the same features, and errors have names."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from transformers import CLIPModel

from src.errors import JobError
from src.model.clip import Clip, load_clip
from tests.model.clips import (
    TEXTS,
    TINY,
    open_clip_folder,
    open_clip_model,
    picture,
    siglip_folder,
    transformers_folder,
    word_tokenizer,
)
from tests.tiny_clip import save_tiny_clip


@pytest.fixture(scope="module")
def tiny_architecture(tmp_path_factory) -> str:
    """An architecture that open_clip knows by name, as it does those of published checkpoints."""
    path = tmp_path_factory.mktemp("configs") / "ViT-Tiny-16.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    return path.stem


def features(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.stack([clip.preprocess(picture(seed)) for seed in range(3)])
    return clip.image_features(pixels), clip.text_features(TEXTS)


def check_unit(found: torch.Tensor, count: int) -> None:
    assert found.shape[0] == count
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=-1), torch.ones(count), atol=1e-5)
    assert (found @ found.T).fill_diagonal_(-1).max() < 0.9999  # different inputs, different features


def test_features_are_those_of_open_clip(tmp_path):
    clip = load_clip(open_clip_folder(tmp_path / "m"), device="cpu")
    model = open_clip_model()
    images, texts = features(clip)
    check_unit(images, 3)
    check_unit(texts, 4)
    with torch.no_grad():
        seen = torch.stack([clip.preprocess(picture(seed)) for seed in range(3)])
        assert torch.allclose(images, model.encode_image(seen, normalize=True), atol=1e-6)
        tokens = open_clip.SimpleTokenizer(context_length=32)(TEXTS)
        assert torch.allclose(texts, model.encode_text(tokens, normalize=True), atol=1e-6)
    assert (clip.backend, clip.device.type, clip.dtype) == ("open_clip", "cpu", torch.float32)
    assert clip.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)


def test_features_are_those_of_transformers(tmp_path):
    folder = transformers_folder(tmp_path / "m", word_tokenizer())
    clip = load_clip(folder, device="cpu")
    images, texts = features(clip)
    check_unit(images, 3)
    check_unit(texts, 4)
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        tokens = clip.processor.tokenizer(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
        seen = clip.processor.image_processor([picture(seed) for seed in range(3)], return_tensors="pt")
        output = model(**tokens, **seen)
    assert torch.allclose(images, output.image_embeds, atol=1e-6)
    assert torch.allclose(texts, output.text_embeds, atol=1e-6)
    assert torch.allclose(clip.text_features(TEXTS[:1]), texts[:1], atol=1e-6)  # whatever stands beside a text


def test_siglip(tmp_path):
    clip = load_clip(siglip_folder(tmp_path / "m"), device="cpu")
    images, texts = features(clip)
    check_unit(images, 3)
    check_unit(texts, 4)
    assert torch.allclose(clip.text_features(TEXTS[:1]), texts[:1], atol=1e-6)  # all are padded to the full length


def test_published_forms_of_checkpoints(tmp_path, tiny_architecture):
    """Plain weights, as RemoteCLIP and GeoRSCLIP are published, and a state of training, as SkyCLIP is."""
    model = open_clip_model()
    plain = tmp_path / f"RemoteCLIP-{tiny_architecture}.pt"
    torch.save(model.state_dict(), plain)
    wrapped = {f"module.{key}": value for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters()).state_dict()
    training = tmp_path / "epoch_20.pt"
    torch.save({"epoch": 20, "name": "SkyCLIP", "state_dict": wrapped, "optimizer": optimizer}, training)
    expected = features(load_clip(open_clip_folder(tmp_path / "m"), device="cpu"))
    for path in (plain, f"open_clip:{tiny_architecture}:{training}"):
        found = features(load_clip(path, device="cpu"))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(JobError, match="no architecture in the name; say open_clip:<architecture>:"):
        load_clip(training)


def test_half_precision_stays_near(tmp_path):
    folder = open_clip_folder(tmp_path / "m")
    half, full = (load_clip(folder, device="cpu", dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert half.dtype == torch.bfloat16
    for a, b in zip(features(half), features(full), strict=True):
        assert a.dtype == torch.float32
        assert (a * b).sum(-1).min() > 0.99


def test_a_fingerprint_tells_tokenisers_of_the_same_words_apart(tmp_path):
    folder = save_tiny_clip(tmp_path / "tiny")
    clip = load_clip(folder, device="cpu")
    first = clip.fingerprint()
    clip.text_features(["a road", "two planes beside a runway"])
    assert clip.fingerprint() == first, "padding that a call asked for is no setting of the model"
    tokens = folder / "tokenizer.json"
    edit(tokens, lambda content: content.update(normalizer={"type": "Lowercase"}))
    prints = {first, load_clip(folder, device="cpu").fingerprint()}
    edit(tokens, lambda content: content["model"]["merges"].reverse())
    prints.add(load_clip(folder, device="cpu").fingerprint())
    assert len(prints) == 3


def edit(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_fingerprint_tells_architectures_of_the_same_weights_apart(tmp_path, monkeypatch):
    folder = transformers_folder(tmp_path / "t", word_tokenizer())
    first = load_clip(folder, device="cpu").fingerprint()
    assert load_clip(folder.rename(tmp_path / "moved"), device="cpu").fingerprint() == first
    config = tmp_path / "moved" / "config.json"
    edit(config, lambda content: content.update(transformers_version="0"))
    prints = {load_clip(config.parent, device="cpu").fingerprint()}
    assert prints == {first}
    edit(config, lambda content: content["vision_config"].update(hidden_act="gelu"))
    prints.add(load_clip(config.parent, device="cpu").fingerprint())
    edit(config, lambda content: content["text_config"].update(num_attention_heads=1))
    prints.add(load_clip(config.parent, device="cpu").fingerprint())
    folder = open_clip_folder(tmp_path / "o")
    prints.add(load_clip(folder, device="cpu").fingerprint())
    edit(folder / "open_clip_config.json", lambda content: content["model_cfg"].update(quick_gelu=True))
    clip = load_clip(folder, device="cpu")
    prints.add(clip.fingerprint())
    monkeypatch.setattr("src.model.clip.version", lambda package: "0")
    prints.add(clip.fingerprint())
    assert len(prints) == 6


class Evil:
    def __reduce__(self):
        return (print, ("run!",))


def test_what_cannot_be_loaded_is_named(tmp_path, tiny_architecture, capsys):
    with pytest.raises(JobError, match="no CLIP model at"):
        load_clip(tmp_path / "nowhere")
    with pytest.raises(JobError, match="no such checkpoint"):
        load_clip(tmp_path / "ViT-B-32.pt")
    with pytest.raises(JobError, match="give open_clip:<architecture>:<file>"):
        load_clip("open_clip:ViT-Z-99:model.pt")
    evil = tmp_path / f"{tiny_architecture}.pt"
    evil.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(JobError, match="open_clip cannot load"):
        load_clip(evil)
    torch.save({"visual.proj": Evil()}, evil)
    with pytest.raises(JobError, match="open_clip cannot load"):
        load_clip(evil)
    assert "run!" not in capsys.readouterr().out
    state = open_clip_model().state_dict()
    del state["visual.ln_post.bias"]
    torch.save(state, evil)
    with pytest.raises(JobError, match=r"visual\.ln_post\.bias"):
        load_clip(evil)
    torch.save({}, evil)
    with pytest.raises(JobError, match="open_clip cannot load"):
        load_clip(evil)
    with pytest.raises(JobError, match="float33"):
        load_clip(evil, dtype="float33")


def test_incomplete_folders_are_refused(tmp_path):
    empty = open_clip_folder(tmp_path / "m")
    (empty / "open_clip_model.safetensors").unlink()
    with pytest.raises(JobError, match="open_clip cannot load"):
        load_clip(empty)
    folder = transformers_folder(tmp_path / "t", word_tokenizer())
    model = CLIPModel.from_pretrained(folder)
    state = model.state_dict()
    del state["text_projection.weight"]
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(JobError, match=r"leaves 1 weights uninitialised: text_projection\.weight"):
        load_clip(folder)
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    (folder / "processor_config.json").unlink(missing_ok=True)
    with pytest.raises(JobError):
        load_clip(folder)


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(JobError, match="not a model of image and text features"):
        load_clip("assets/nano/base", device="cpu")
