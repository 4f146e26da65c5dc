"""CLIP training: the objective against slow twins and against transformers, its gradients in pieces and processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPModel, CLIPProcessor

from python_script import train_clip
from src.dataset.scene_text import captions
from src.dataset.scenes import make_scene, scene_rng
from src.model.nano_clip import nano_clip
from src.training.clip import ClampScale, ClipTrainer
from src.training.clip_config import ClipConfig, Model, make_trainable
from src.training.clip_loss import cached_backward, contrastive_loss, same_pair
from src.training.run import training_arguments
from tests.training.launches import run_here

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "config/nano/clip_training.yaml"


@pytest.fixture(scope="module")
def clip() -> tuple[CLIPModel, CLIPProcessor]:
    torch.manual_seed(0)
    return nano_clip(["a lake beside fields .", "two ships near a pier ."] * 9, 300, image_side=32)


def unit(rows: int, seed: int, dim: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=-1)


def slow_loss(image, text, scale, same) -> float:
    """The definition, a query at a time."""
    total, n = 0.0, len(image)
    for queries, keys, others in ((image, text, same), (text, image, same.T)):
        for i in range(n):
            logits = [scale * float(queries[i] @ keys[j]) for j in range(n) if j == i or not others[i, j]]
            own = scale * float(queries[i] @ keys[i])
            total += np.log(np.sum(np.exp(logits))) - own
    return total / (2 * n)


def test_the_loss_is_its_definition_and_leaves_out_what_is_also_true():
    image, text, groups = unit(7, 1), unit(7, 2), torch.tensor([[0, 9], [0, 8], [1, 7], [2, 9], [3, 6], [4, 5], [4, 5]])
    same = same_pair(groups, groups)
    assert same[0].tolist() == [True, True, False, True, False, False, False]
    assert contrastive_loss(image, text, 20.0, same).item() == pytest.approx(slow_loss(image, text, 20.0, same))
    assert contrastive_loss(image, text, 20.0, same) < contrastive_loss(image, text, 20.0)


def test_without_shared_images_or_texts_it_is_the_loss_of_transformers(clip):
    model, processor = clip
    tokens = processor.tokenizer(["a lake .", "two ships .", "fields"], padding=True, return_tensors="pt")
    outputs = model(**tokens, pixel_values=torch.rand(3, 3, 32, 32), return_loss=True)
    ours = contrastive_loss(outputs.image_embeds, outputs.text_embeds, model.logit_scale.exp())
    torch.testing.assert_close(ours, outputs.loss)


@pytest.mark.parametrize("chunk", [1, 3, 5, 8])
def test_gradients_found_by_chunks_are_those_of_the_whole_batch(chunk):
    torch.manual_seed(0)
    towers = torch.nn.ModuleList([torch.nn.Linear(6, 4), torch.nn.Linear(5, 4)]).double()
    scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    images, texts = torch.randn(8, 6, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    dropout = torch.nn.Dropout(0.0)

    def encode(rows):
        return tuple(F.normalize(dropout(t(x[rows])), dim=-1) for t, x in zip(towers, (images, texts), strict=True))

    def loss_of(image, text, log_scale):
        return contrastive_loss(image, text, log_scale.exp())

    whole = loss_of(*encode(slice(None)), scale)
    whole.backward()
    wanted = [p.grad.clone() for p in [*towers.parameters(), scale]]
    for p in [*towers.parameters(), scale]:
        p.grad = None
    rows = torch.arange(8).split(chunk)
    found = cached_backward(lambda n: encode(rows[n]), len(rows), loss_of, scale, torch.Tensor.backward)
    torch.testing.assert_close(found, whole.detach())
    torch.testing.assert_close([p.grad for p in [*towers.parameters(), scale]], wanted)


def test_chunks_meet_the_same_random_numbers_twice():
    weights = torch.nn.Parameter(torch.ones(4, 3))
    seen = []

    def encode(number):
        seen.append(torch.rand(2))
        part = F.normalize(weights[2 * number : 2 * number + 2] + 0.1 * torch.rand(2, 3), dim=-1)
        return part, part

    scale = torch.nn.Parameter(torch.tensor(1.0))
    cached_backward(encode, 2, lambda i, t, s: contrastive_loss(i, t, s.exp()), scale, torch.Tensor.backward)
    torch.testing.assert_close(seen[:2], seen[2:])
    assert not torch.equal(seen[0], seen[1])


def trainer(clip, folder, **options) -> ClipTrainer:
    model, processor = clip
    arguments = training_arguments(ClipConfig(save_folder=str(folder), precision="fp32"), None)
    return ClipTrainer(model, arguments, processing_class=processor, **options)


def test_weight_decay_is_for_matrices_and_the_scale_stays_in_its_range(clip, tmp_path):
    one = trainer(clip, tmp_path)
    decayed = one.get_decay_parameter_names(clip[0])
    assert "visual_projection.weight" in decayed
    assert not [name for name in decayed if "bias" in name or "norm" in name or "logit_scale" in name]
    assert "vision_model.embeddings.class_embedding" not in decayed
    with torch.no_grad():
        before = clip[0].logit_scale.clone()
        clip[0].logit_scale.fill_(9.0)
        clamp = next(c for c in one.callback_handler.callbacks if isinstance(c, ClampScale))
        clamp.on_step_end(model=clip[0])
        assert clip[0].logit_scale.exp().item() == pytest.approx(100, rel=1e-5)
    image, text = unit(4, 1).float(), unit(4, 2).float()
    one._loss(image, text, clip[0].logit_scale, torch.arange(8).view(4, 2)).backward()
    assert clip[0].logit_scale.grad.abs() > 0  # at the bound it can still come down
    clip[0].zero_grad(set_to_none=True)
    with torch.no_grad():
        clip[0].logit_scale.copy_(before)


def test_a_batch_in_chunks_gives_the_gradients_of_a_batch_at_once(clip, tmp_path):
    model = clip[0]
    torch.manual_seed(1)
    batch = {
        "input_ids": torch.randint(3, 200, (6, 5)),
        "attention_mask": torch.ones(6, 5, dtype=torch.long),
        "pixel_values": torch.rand(4, 3, 32, 32),  # two of the images have two texts
        "image_index": torch.tensor([0, 0, 1, 2, 3, 3]),
        "groups": torch.tensor([[0, 1], [0, 2], [1, 3], [2, 4], [3, 5], [3, 5]]),
    }
    gradients = []
    for chunk in (None, 4):
        one = trainer(clip, tmp_path, chunk=chunk)
        one.create_optimizer()
        one.current_gradient_accumulation_steps = 1
        model.zero_grad()
        loss = one.training_step(model, batch)
        gradients.append([loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(gradients[0]) == len(list(model.parameters())) + 1
    torch.testing.assert_close(gradients[0], gradients[1], atol=2e-5, rtol=1e-3)
    model.zero_grad(set_to_none=True)


def test_what_trains(clip):
    model = clip[0]
    locked = make_trainable(model, Model(train_image_tower=False))
    frozen = {name.split(".")[0] for name, p in locked.named_parameters() if not p.requires_grad}
    assert frozen == {"vision_model"}
    with pytest.raises(Exception, match="nothing to train"):
        make_trainable(model, Model(train_image_tower=False, train_text_tower=False))
    model.requires_grad_(True)
    adapted = make_trainable(nano_clip(["a b"], 260, 32)[0], Model(lora_rank=2, train_image_tower=False))
    named = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert named
    assert all("text_model" in name or "projection" in name for name in named)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """40 scenes with two captions each in a CSV, and a start of random weights."""
    folder = tmp_path_factory.mktemp("scenes")
    lines, texts = ["filename,title,clip_score"], []
    for seed in range(40):
        scene = make_scene(seed, size=48)
        scene.image.save(folder / f"{seed}.png")
        for text in captions(scene.facts, scene_rng(seed), 2):
            lines.append(f'{seed}.png,"{text}",{seed / 100}')
            texts.append(text)
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    records = [{"filename": f"{k}.png", "captions": texts[2 * k : 2 * k + 2]} for k in range(40)]
    (folder / "lists.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    torch.manual_seed(0)
    model, processor = nano_clip(texts, 400, image_side=32)
    model.save_pretrained(folder / "start")
    processor.save_pretrained(folder / "start")
    return folder


def train(scenes: Path, out: Path, processes: int, **keys: object) -> list[float]:
    """Losses of ten steps of eight pairs in all."""
    settings = {
        "model.model_name": scenes / "start", "data.csv_path": scenes / "pairs.csv", "save_folder": out,
        "data.cache_dir": scenes / f"cache{processes}", "data.image_column": "filename", "data.target_column": "title",
        "data.captions": "each", "data.augment": "false", "data.num_workers": 0, "precision": "fp32",
        "run_strategy": "step", "run_duration": 10, "checkpoint.save_strategy": "step", "checkpoint.save_interval": 5,
        "console_log_interval": 1, "scheduler.t_warmup": 1, "device_train_batch_size": 8 // processes,
        "checkpoint.save_num_checkpoints_to_keep": 9, **keys,
    }  # fmt: skip
    arguments = [f"{key}={value}" for key, value in settings.items()]
    if processes == 1:
        printed = run_here(train_clip.main, ClipConfig, CONFIG, arguments)
    else:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [*launcher, "python_script/train_clip.py", CONFIG, *arguments]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        printed = done.stdout
    assert f"{processes} processes" in printed
    return [entry["loss"] for entry in json.loads((out / "history.json").read_text()) if "loss" in entry]


@pytest.fixture(scope="module")
def one(scenes, tmp_path_factory) -> tuple[Path, list[float]]:
    out = tmp_path_factory.mktemp("one") / "run"
    return out, train(scenes, out, 1)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"loss.local": "false"}, {"loss.local": "true", "loss.chunk": 3}], ids=str)
def test_two_processes_give_the_losses_of_one(scenes, one, tmp_path, keys):
    """As many negatives, too: the loss of a local batch of four would start near ln 4, not ln 8."""
    losses = train(scenes, tmp_path / "two", 2, **keys)
    assert one[1][0] > 1.8
    assert losses == pytest.approx(one[1], abs=1e-4)


@pytest.mark.slow
def test_captions_are_drawn_anew_each_epoch_by_two_processes_too(scenes, tmp_path):
    """Ten steps of 40 pairs are ten epochs; with the weights held still, the loss moves by what is drawn alone."""
    keys = {"data.captions": "drawn", "data.csv_path": scenes / "lists.jsonl", "data.target_column": "captions",
            "device_train_batch_size": 20, "optimizer.learning_rate": 1e-12}  # fmt: skip
    losses = train(scenes, tmp_path / "two", 2, **keys)
    assert len({round(loss, 4) for loss in losses}) > 5


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped_and_its_model_loads(scenes, one, tmp_path):
    out = tmp_path / "resumed"
    out.mkdir()
    (out / "checkpoint-5").symlink_to(one[0] / "checkpoint-5")
    assert train(scenes, out, 1, load_path="last") == pytest.approx(one[1], abs=1e-5)
    model, processor = CLIPModel.from_pretrained(out / "final"), CLIPProcessor.from_pretrained(out / "final")
    inputs = processor(text=["a lake"], images=[Image.new("RGB", (40, 50))], return_tensors="pt", padding=True)
    assert model(**inputs).logits_per_image.shape == (1, 1)


@pytest.mark.slow
def test_the_script_trains_and_the_best_checkpoint_is_chosen_by_zero_shot_accuracy(scenes, tmp_path):
    """Defect 51: lines broken by comments left it without images, table and model."""
    for seed in range(12):
        scene = make_scene(seed, size=48)
        (folder := tmp_path / "val" / "scenes_Image" / scene.facts.kind).mkdir(parents=True, exist_ok=True)
        scene.image.save(folder / f"{seed}.png")
    settings = {
        "CSV_PATH": scenes / "pairs.csv", "IMAGE_COLUMN": "filename", "TARGET_COLUMN": "title", "NUM_PROCESSES": 1,
        "VAL_DATA_PATH": tmp_path / "val", "OUTPUT_DIR": tmp_path / "out", "FILTER_RECORD": "true",
        "SAVE_TOP_PERCENT": 0.5, "OMP_NUM_THREADS": 1,
    }  # fmt: skip
    keys = [
        f"model.model_name={scenes / 'start'}", f"data.cache_dir={tmp_path / 'cache'}", "run_strategy=step",
        "run_duration=4", "checkpoint.save_strategy=step", "checkpoint.save_interval=2", "device_train_batch_size=8",
        "precision=fp32", "data.num_workers=0",
    ]  # fmt: skip
    env = {**os.environ, **{name: str(value) for name, value in settings.items()}}
    command = ["bash", "script/train_clip_remoteclip.sh", *keys]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "40 rows of 80 by clip_score" in done.stdout
    measured = json.loads((tmp_path / "out" / "metrics.json").read_text())
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    on_the_way = [entry["eval_clip_cls_scenes_top1"] for entry in history if "eval_clip_cls_scenes_top1" in entry][:2]
    assert measured["eval_clip_cls_scenes_top1"] == max(on_the_way)
