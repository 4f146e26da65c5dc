"""What the conversion takes, refuses and writes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from python_script import convert_checkpoint
from src.errors import JobError
from src.model.vlm.convert import convert
from src.model.vlm.tokenizer import llama_tokenizer
from src.model.vlm.towers import resized_positions
from src.model.vlm.weights import Weight, stored_weights, write_weights
from tests.conftest import PUBLISHED_VLMS
from tests.model.vlm.plain_vlm import read
from tests.model.vlm.test_vlm_numbers import (
    LHRS,
    arrays_of,
    cases_of,
    check_case,
    inputs_of,
    logits_of,
    near,
)

ROOT = Path(__file__).parents[3]


def load(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder, backend="pil")


def edited(target, family, weights=None, **config):
    """The fixture's checkpoint with other settings (None takes one out) and weights, in ``target``."""
    source = PUBLISHED_VLMS / family / "checkpoint"
    shutil.copytree(source, target)
    held = read(source)
    for file in [*target.glob("*.bin*"), *target.glob("*.safetensors")]:
        file.unlink()
    save_file(weights(held) if weights else held, target / "model.safetensors")
    told = json.loads((source / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps({key: value for key, value in told.items() if value is not None}))
    return target


def tower_of(family):
    return PUBLISHED_VLMS / family / "stock_tower"


@pytest.mark.parametrize("family", ["geochat", "vhm", LHRS])
def test_the_program_writes_what_the_function_does(converted_vlm, tmp_path, capsys, family):
    source, target = PUBLISHED_VLMS / family, tmp_path / "new"
    base = ["--text_base", str(source / "text_base")] if family == LHRS else []
    convert_checkpoint.main([str(source / "checkpoint"), str(target), "--tower", str(tower_of(family)), *base])
    assert capsys.readouterr().out == f"model  {target}\n"
    for file in converted_vlm(family).iterdir():
        assert (target / file.name).read_bytes() == file.read_bytes()
    assert len(list(target.iterdir())) == len(list(converted_vlm(family).iterdir()))


KILLED = """
import os, signal, sys
import src.model.vlm.weights as weights
from python_script.convert_checkpoint import main
save = weights.save_file
def save_and_die(*args, **more):
    save(*args, **more)
    os.kill(os.getpid(), signal.SIGKILL)
weights.save_file = save_and_die
main(sys.argv[1:])
"""


def test_a_killed_conversion_leaves_no_folder(tmp_path):
    source, target = PUBLISHED_VLMS / "vhm" / "checkpoint", tmp_path / "new"
    arguments = [str(source), str(target), "--tower", str(tower_of("vhm"))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, *arguments]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not target.exists()
    assert any(file.suffix == ".safetensors" for file in tmp_path.rglob("*"))  # it had got so far
    convert_checkpoint.main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda held: {k: v for k, v in held.items() if k != "model.norm.weight"},
            r"1 missing: model\.language_model\.norm",
        ),
        (lambda held: held | {"model.mm_extra.weight": torch.ones(2)}, r"1 unused: model\.mm_extra\.weight"),
        (
            lambda held: held | {"model.norm.weight": torch.ones(33)},
            r"1 of another shape: model\.language_model\.norm\.weight \(33,\) for \(32,\)",
        ),
        (
            lambda held: {k: v for k, v in held.items() if "layer_norm2" not in k},
            r"10 missing: model\.vision_tower\.encoder\.layers\.0\.layer_norm2\.bias.*and 2 more",
        ),
    ],
    ids=["missing", "unused", "shape", "tower"],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, told):
    source = edited(tmp_path / "vhm", "vhm", change)
    with pytest.raises(JobError, match=told):
        convert(source, tmp_path / "new", tower=tower_of("vhm"))
    assert [path.name for path in tmp_path.iterdir()] == ["vhm"]


def test_what_is_no_weight_may_lie_in_a_checkpoint(tmp_path, converted_vlm):
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(577)[None],
    }
    source = edited(tmp_path / "vhm", "vhm", lambda held: held | extra)
    made = load_file(convert(source, tmp_path / "new", tower=tower_of("vhm")) / "model.safetensors")
    assert made.keys() == load_file(converted_vlm("vhm") / "model.safetensors").keys()


def test_a_tower_comes_from_its_folder_only_where_the_checkpoint_has_none(tmp_path, converted_vlm):
    def bare(held):
        return {name: value for name, value in held.items() if "vision_tower" not in name}

    source = edited(tmp_path / "geochat", "geochat", bare)
    made = load_file(convert(source, tmp_path / "new", tower=tower_of("geochat")) / "model.safetensors")
    published = load_file(converted_vlm("geochat", "published") / "model.safetensors")
    assert all(torch.equal(value, published[name]) for name, value in made.items())
    with pytest.raises(JobError, match=r"the checkpoint has none.*--tower"):
        convert(source, tmp_path / "none")
    with pytest.raises(JobError, match=r"published takes the stock ones.*--tower"):
        convert(PUBLISHED_VLMS / "geochat" / "checkpoint", tmp_path / "none", compat="published")
    unknown = edited(tmp_path / "other", "geochat", mm_vision_tower="someone/tower")
    with pytest.raises(JobError, match=r"'someone/tower' is not known.*--tower"):
        convert(unknown, tmp_path / "none")


def test_a_table_of_positions_of_either_size_fits(tmp_path, converted_vlm):
    """A GeoChat checkpoint that was saved at 504 px already, or a SkySenseGPT one at 336."""
    key = "model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight"
    source = edited(tmp_path / "wide", "geochat", lambda held: held | {key: resized_positions(held[key], 1297)})
    made = load_file(convert(source, tmp_path / "new", tower=tower_of("geochat")) / "model.safetensors")
    same = load_file(converted_vlm("geochat") / "model.safetensors")
    assert all(torch.equal(value, same[name]) for name, value in made.items())
    with pytest.raises(JobError, match="a square plus 1"):
        resized_positions(torch.zeros(12, 4), 1297)


def test_images_between_marks(tmp_path):
    source = edited(tmp_path / "marked", "skysensegpt", mm_use_im_start_end=True)
    for compat in ("intended", "published"):
        model, processor = load(convert(source, tmp_path / compat, tower=tower_of("skysensegpt"), compat=compat))
        result = cases_of("skysensegpt")["cases"]["8_im_start_end"]["results"][compat]
        logits = arrays_of("skysensegpt")[f"logits/{compat}/8_im_start_end"]
        check_case(model, inputs_of(processor, "skysensegpt", "8_im_start_end"), result, logits)


def test_the_patch_token_is_there_unless_it_is_forbidden(tmp_path):
    """Where the configuration does not speak of it, the vocabulary has one row more; nothing else changes."""
    source = edited(tmp_path / "silent", "vhm", mm_use_im_patch_token=None)
    model, processor = load(convert(source, tmp_path / "new", tower=tower_of("vhm")))
    assert processor.tokenizer.convert_tokens_to_ids(["<im_patch>", "<image>"]) == [490, 491]
    assert model.config.image_token_id == 491
    near(logits_of(model, **inputs_of(processor, "vhm", "1_cls"))[0, :490], arrays_of("vhm")["logits/intended/1_cls"])


@pytest.mark.parametrize("kind", ["linear", "mlp1x_gelu"])
def test_projectors_of_one_layer(tmp_path, kind):
    def single(held):
        kept = {name: value for name, value in held.items() if "mm_projector.2" not in name}
        dot = "." if kind == "linear" else ".0."
        return {name.replace("mm_projector.0.", f"mm_projector{dot}"): value for name, value in kept.items()}

    source = edited(tmp_path / "single", "vhm", single, mm_projector_type=kind)
    model, _ = load(convert(source, tmp_path / "new", tower=tower_of("vhm")))
    held = read(PUBLISHED_VLMS / "vhm" / "checkpoint")
    entered = torch.randn(7, 72, generator=torch.Generator().manual_seed(0))
    wanted = entered @ held["model.mm_projector.0.weight"].T + held["model.mm_projector.0.bias"]
    near(model.model.multi_modal_projector(entered), wanted)


def test_settings_that_no_folder_can_say_are_refused(tmp_path):
    deep = edited(tmp_path / "deep", "vhm", mm_projector_type="mlp3x_gelu")
    with pytest.raises(JobError, match=r"'mlp3x_gelu' is not converted here; known: linear, mlp1x_gelu, mlp2x_gelu"):
        convert(deep, tmp_path / "new", tower=tower_of("vhm"))
    other = edited(tmp_path / "other", "vhm", model_type="llava_qwen")
    with pytest.raises(JobError, match=r"model_type 'llava_qwen' is not converted here; known: geochat, vhm"):
        convert(other, tmp_path / "new")
    lacking = edited(tmp_path / "lacking", "vhm", mm_vision_select_layer=None)
    with pytest.raises(JobError, match="lacks mm_vision_select_layer"):
        convert(lacking, tmp_path / "new")
    with pytest.raises(JobError, match="for LHRS-Bot-Nova"):
        convert(deep, tmp_path / "new", without_lora=True)
    with pytest.raises(JobError, match="there is no"):
        convert(tmp_path / "nothing", tmp_path / "new")
    with pytest.raises(JobError, match="holds something already"):
        convert(PUBLISHED_VLMS / "vhm" / "checkpoint", deep, tower=tower_of("vhm"))


def test_a_damaged_tokenizer_is_refused(tmp_path):
    with pytest.raises(JobError, match=r"holds no tokenizer\.model"):
        llama_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\xff" * 40)
    with pytest.raises(JobError, match="is no sentencepiece model"):
        llama_tokenizer(tmp_path)
    shutil.copy(PUBLISHED_VLMS / "vhm" / "checkpoint" / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<im_patch>": 495}')
    with pytest.raises(JobError, match=r"the added token <im_patch> has the id 495, not 490"):
        llama_tokenizer(tmp_path)


def lhrs_copy(target, **files):
    """The fixture's LHRS checkpoint with some files of the fixture in place of its own; None leaves one out."""
    source = PUBLISHED_VLMS / LHRS
    target.mkdir()
    for name, path in {"FINAL.pt": "checkpoint/FINAL.pt", "TextLoRA": "checkpoint/TextLoRA", **files}.items():
        if path:
            (target / name).symlink_to(source / path)
    return target


def convert_lhrs(source, target, **more):
    return convert(source, target, tower=tower_of(LHRS), text_base=PUBLISHED_VLMS / LHRS / "text_base", **more)


def test_lhrs_without_its_adapter_is_an_error_unless_that_is_meant(tmp_path):
    source = lhrs_copy(tmp_path / "alone", TextLoRA=None)
    with pytest.raises(JobError, match=r"TextLoRA holds no adapter.*--text_lora, or say --without_lora"):
        convert_lhrs(source, tmp_path / "new")
    lora = PUBLISHED_VLMS / LHRS / "checkpoint" / "TextLoRA"
    whole = convert_lhrs(source / "FINAL.pt", tmp_path / "whole", text_lora=lora)
    bare, processor = load(convert_lhrs(source, tmp_path / "bare", without_lora=True, compat="published"))
    result = cases_of(LHRS)["cases"]["1_cls"]["results"]["published_ids_without_lora"]
    logits = arrays_of(LHRS)["logits/published_ids_without_lora/1_cls"]
    check_case(bare, inputs_of(processor, LHRS, "1_cls"), result, logits)
    merged = load_file(whole / "model.safetensors")["model.language_model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(merged, bare.model.language_model.layers[0].mlp.up_proj.weight)


def test_lhrs_with_an_adapter_that_does_not_fit(tmp_path):
    source = lhrs_copy(tmp_path / "odd", TextLoRA=None)
    lora = shutil.copytree(PUBLISHED_VLMS / LHRS / "checkpoint" / "TextLoRA", source / "TextLoRA")
    held = load_file(lora / "adapter_model.safetensors")
    lost = held.pop("base_model.model.model.layers.1.mlp.up_proj.lora_A.weight")
    save_file(
        held | {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": lost}, lora / "adapter_model.safetensors"
    )
    with pytest.raises(JobError, match=r"for nothing in the text model: .*layers\.9\.mlp.*, model\.layers\.1\.mlp"):
        convert_lhrs(source, tmp_path / "new")
    settings = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(JobError, match=r"no plain LoRA adapter: use_dora"):
        convert_lhrs(source, tmp_path / "new")
    (lora / "adapter_config.json").write_text("{")
    with pytest.raises(JobError, match=r"no adapter_config\.json that can be read"):
        convert_lhrs(source, tmp_path / "new")


def test_lhrs_needs_its_text_model(tmp_path):
    source = PUBLISHED_VLMS / LHRS / "checkpoint"
    with pytest.raises(JobError, match="--text_base"):
        convert(source, tmp_path / "new")
    with pytest.raises(JobError, match="holds no text model with its tokeniser"):
        convert(source, tmp_path / "new", text_base=tmp_path / "nothing", tower=tower_of(LHRS))
    with pytest.raises(JobError, match="is no Llama model but a qwen2_vl"):
        convert(source, tmp_path / "new", text_base=ROOT / "assets" / "nano" / "base", tower=tower_of(LHRS))


def test_lhrs_with_a_resampler_of_before_the_experts(tmp_path):
    """Every expert becomes the plain layer; the tower, of which the checkpoint has nothing, is the stock one."""
    source = lhrs_copy(tmp_path / "dense", **{"FINAL.pt": "checkpoint_dense/FINAL.pt"})
    model, _ = load(convert_lhrs(source, tmp_path / "new"))
    usual, processor = load(convert_lhrs(PUBLISHED_VLMS / LHRS / "checkpoint", tmp_path / "usual"))
    usual.model.multi_modal_projector = model.model.multi_modal_projector
    for name in cases_of(LHRS)["image_info"]:
        case = next(key for key, case in cases_of(LHRS)["cases"].items() if case["image"] == name)
        pixels = inputs_of(processor, LHRS, case)["pixel_values"]
        with torch.inference_mode():
            near(
                usual.get_image_features(pixel_values=pixels).pooler_output[0],
                arrays_of(LHRS)[f"features_dense/{name}"],
            )
    stock = load_file(tower_of(LHRS) / "model.safetensors")["vision_model.embeddings.patch_embedding.weight"]
    assert torch.equal(model.model.vision_tower.embeddings.patch_embedding.weight, stock)
    with pytest.raises(JobError, match=r"holds no weights of the vision tower.*--tower"):
        convert(source, tmp_path / "none", text_base=PUBLISHED_VLMS / LHRS / "text_base")


class Code:
    """What a pickle runs when it is opened."""

    def __reduce__(self):
        return os.mkdir, ("was_run",)


def test_a_checkpoint_that_is_damaged_or_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(JobError, match="cannot be read as weights alone"):
        stored_weights(tmp_path)
    assert not Path("was_run").exists()
    torch.save([torch.zeros(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(JobError, match="it holds a list, not weights by name"):
        stored_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(JobError, match="cannot be read as weights alone"):
        stored_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(JobError, match=r"model\.safetensors cannot be read as weights alone"):
        stored_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(JobError, match="is no index of weights"):
        stored_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "lost.safetensors"}}')
    with pytest.raises(JobError, match=r"lost\.safetensors cannot be read"):
        stored_weights(tmp_path)


def test_weights_pass_one_shard_at_a_time(tmp_path, monkeypatch):
    """Shards with an index, in the type that the weights have; a shard is written before more is read than fills it."""
    drawn, written = [], []

    def draw(number):
        drawn.append(number)
        return torch.full((256,), float(number), dtype=torch.bfloat16)

    def save(tensors, file, metadata):
        written.extend(tensors)
        assert sum(tensor.nbytes for tensor in tensors.values()) == 2048
        assert len(drawn) - len(written) == (len(written) < 20)
        save_file(tensors, file, metadata)

    monkeypatch.setattr("src.model.vlm.weights.save_file", save)
    write_weights({f"w{k}": Weight((256,), lambda k=k: draw(k)) for k in range(20)}, tmp_path, shard_bytes=2048)
    names = [f"model-{k:05}-of-00005.safetensors" for k in range(1, 6)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "model.safetensors.index.json"]
    again = stored_weights(tmp_path)
    assert [float(again[f"w{k}"].read()[0]) for k in range(20)] == list(range(20))
    assert again["w3"].shape == (256,)
    assert again["w3"].read().dtype == torch.bfloat16
