"""Both parts of the embedded model's training, for real, at a size of seconds."""

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, TrainingArguments

from src.curation.scorer import Scorer
from src.dataset.collate import PairEncoder
from src.dataset.scene_facts import draw_facts
from src.dataset.scenes import scene_rng
from src.model.nano import SPECIAL_TOKENS, nano_config, nano_processor
from src.model.qwen_reward import Qwen2Reward
from src.training.contrastive import ContrastiveCollator, ContrastiveModel, TowerTrainer
from src.training.grounding import (
    FACTS,
    IGNORED,
    THINGS,
    GroundingCollator,
    GroundingHeads,
    GroundingModel,
    no_labels,
    scene_labels,
    stack_labels,
)
from src.training.nano_data import MADE_SIDE, NanoData, RealImages, SceneImages, load_scenes, turned
from src.training.reward import PreferenceCollator, RewardTrainer, ranking_metrics


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> SceneImages:
    return load_scenes(5, 24, 56, tmp_path_factory.mktemp("cache"), processes=1)


@pytest.fixture(scope="module")
def real() -> RealImages:
    """Stand-ins for photographs: a red, a green and a blue class."""
    rng = np.random.default_rng(0)
    pixels, texts, labels = [], [], []
    for i in range(12):
        image = rng.integers(0, 60, (60, 66, 3), dtype=np.uint8)
        image[:, :, i % 3] += 180
        name = ["red", "green", "blue"][i % 3]
        pixels.append(image)
        texts.append([f"a {name} field", f"{name} land number {i}"])
        labels.append(name)
    return RealImages(pixels, texts, labels)


@pytest.fixture(scope="module")
def processor(real, scenes):
    return nano_processor(NanoData("contrastive", 1, 0, real, scenes).all_texts(), 600, 56)


def arguments(folder, steps: int) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=6,
        learning_rate=2e-3,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=1,
    )


def losses(trainer) -> list[float]:
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def test_processor_is_a_plain_qwen2_vl_processor(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
    text = "two red ships\nnear a pier , 12 ✓"
    assert loaded.tokenizer.decode(loaded.tokenizer(text)["input_ids"]) == text
    assert loaded.tokenizer.pad_token == "<|endoftext|>"
    assert loaded.chat_template == processor.chat_template


def test_preference_training_learns_and_its_model_scores(tmp_path, real, scenes, processor):
    data = NanoData("preference", 6, 0, real, scenes, real_share=0, rejected=5)  # six groups, to be learned by heart
    model = Qwen2Reward(nano_config(processor))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    encoder = PairEncoder(processor)
    trainer = RewardTrainer(
        model,
        arguments(tmp_path, 40),
        PreferenceCollator(encoder),
        data,
        data,
        loss="choice",
        pooled_weight=0.5,
        text_weight=0.1,
        compute_metrics=ranking_metrics,
    )
    trainer.train()
    assert all((weight != before[name]).any() for name, weight in model.named_parameters() if weight.grad is not None)
    assert np.mean(losses(trainer)[-5:]) < np.mean(losses(trainer)[:5]) - 0.3
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] > 0.6
    assert metrics["eval_score_min"] <= metrics["eval_score_mean"] <= metrics["eval_score_max"]

    model.save_pretrained(tmp_path / "scorer")
    processor.save_pretrained(tmp_path / "scorer")
    group = data[0]
    texts = [group["chosen"], *group["rejected"]]
    scores = Scorer.from_pretrained(tmp_path / "scorer").score({"images": group["images"], "text": t} for t in texts)
    with torch.inference_mode():
        batch = PreferenceCollator(encoder)([group])
        del batch["weights"], batch["sources"]
        expected = model.eval()(**batch).values
    assert scores == pytest.approx(expected.tolist(), abs=1e-4)


def test_grounding_learns_and_its_heads_know_more_than_chance(tmp_path, real, scenes, processor):
    data = NanoData("grounding", 40 * 6, 0, real, scenes, real_share=0)
    model = GroundingModel(Qwen2Reward(nano_config(processor)), GroundingHeads(192))
    collator = GroundingCollator(PairEncoder(processor))
    trainer = TowerTrainer(model, arguments(tmp_path, 40), collator, data)
    trainer.train()
    assert np.mean(losses(trainer)[-5:]) < np.mean(losses(trainer)[:5]) - 2
    assert not any(weight.grad is not None for weight in model.backbone.model.language_model.parameters())


def test_labels_turn_with_the_picture(scenes):
    for i in range(len(scenes.facts)):
        pixels, facts, objects = scenes.pixels[i], scenes.facts[i], scenes.objects[i]
        upright = scene_labels(facts, objects, 8, MADE_SIDE)
        assert upright["shares"].sum() == pytest.approx(facts.count, abs=1e-4)
        for quarters, mirrored in ((1, False), (2, True), (3, True)):
            image, now, moved = turned(pixels, facts, objects, quarters, mirrored)
            expected = np.rot90(pixels, quarters)
            assert (image == (expected[:, ::-1] if mirrored else expected)).all()
            labels = scene_labels(now, moved, 8, MADE_SIDE)
            for name in ("things", "colours", "shares"):
                map_ = np.rot90(upright[name].reshape(8, 8), quarters)
                np.testing.assert_allclose(labels[name].reshape(8, 8), map_[:, ::-1] if mirrored else map_, atol=1e-6)
            counted = [thing.box for thing in moved if thing.role == "counted"]
            landmark = next(thing.box for thing in moved if thing.role == "landmark")
            away = [np.mean([box[k] + box[k + 2] for box in counted]) - landmark[k] - landmark[k + 2] for k in (0, 1)]
            towards = {"right of": away[0], "left of": -away[0], "below": away[1], "above": -away[1]}
            assert towards[now.relation] == max(towards.values())


def test_labels_name_what_covers_a_cell(scenes):
    facts, objects = scenes.facts[0], scenes.objects[0]
    labels = scene_labels(facts, objects, 8, MADE_SIDE)
    landmark = next(thing for thing in objects if thing.role == "landmark")
    x, y = (
        (landmark.box[0] + landmark.box[2]) * 8 // (2 * MADE_SIDE),
        (landmark.box[1] + landmark.box[3]) * 8 // (2 * MADE_SIDE),
    )
    assert THINGS[labels["things"][y * 8 + x]] == landmark.category
    assert [options[i] for options, i in zip(FACTS.values(), labels["facts"], strict=True)] == [
        getattr(facts, name) for name in FACTS
    ]


def test_an_image_that_is_no_scene_teaches_the_heads_nothing(scenes):
    heads, tokens = GroundingHeads(192), [torch.randn(4, 192), torch.randn(9, 192)]
    scene = scene_labels(scenes.facts[0], scenes.objects[0], 2, MADE_SIDE)
    with_other, _ = heads(tokens, stack_labels([scene, no_labels(2)]))
    alone, right = heads(tokens[:1], stack_labels([scene]))
    torch.testing.assert_close(with_other, alone)
    assert all(0 <= share <= 1 for name, share in right.items() if name != "colours")
    assert no_labels(2)["facts"].tolist() == [IGNORED] * len(FACTS)


def test_contrastive_training_learns(tmp_path, real, scenes, processor):
    data = NanoData("contrastive", 25 * 6, 0, real, scenes, real_share=0.5)
    towers = ContrastiveModel(Qwen2Reward(nano_config(processor)), heads=GroundingHeads(192), grounding_weight=0.2)
    trainer = TowerTrainer(towers, arguments(tmp_path, 25), ContrastiveCollator(PairEncoder(processor)), data)
    trainer.train()
    assert np.mean(losses(trainer)[-5:]) < np.mean(losses(trainer)[:5])


def test_equal_texts_are_no_negatives_and_hard_texts_are(real, scenes, processor):
    towers = ContrastiveModel(Qwen2Reward(nano_config(processor)))
    image = NanoData("contrastive", 1, 0, real, scenes, real_share=1)[0]["image"]
    samples = [
        {"image": image, "text": "a red field"},
        {"image": image, "text": "a red field"},
        {"image": image, "text": "a blue field", "hard": "a green field"},
    ]
    logits = towers(**ContrastiveCollator(PairEncoder(processor))(samples))["logits"]
    assert logits.shape == (3, 4)
    assert torch.isinf(logits).tolist() == [[False, True, False, False], [True, False, False, False], [False] * 4]


def test_twin_captions_differ_in_what_is_wrong_alone(real, scenes):
    data = NanoData("preference", 1, 0, real, scenes, real_share=0, rejected=5, twins=1)
    alike = []
    for i in range(60):
        group = data[i]
        for text in group["rejected"]:
            a, b = group["chosen"].split(), text.split()
            if len(a) == len(b):
                alike.append(sum(x != y for x, y in zip(a, b, strict=True)))
    assert len(alike) > 60
    assert np.median(alike) <= 2
    assert 0 not in alike


def test_draws_repeat_and_rejected_texts_are_not_the_images_own(real, scenes):
    data = NanoData("preference", 200, 3, real, scenes, real_share=1, same_class=1)
    for i in range(50):
        one, again = data[i], data[i]
        assert (one["chosen"], one["rejected"]) == (again["chosen"], again["rejected"])
        assert len(one["rejected"]) == 3
        assert one["chosen"] not in one["rejected"]
    assert scenes.facts[0] == draw_facts(scene_rng(50_000_000))
