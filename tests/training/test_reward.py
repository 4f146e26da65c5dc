"""The reward trainer's parts: batches of mixed groups, losses with absent answers, what trains, metrics."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainingArguments

from src.curation.scorer import NANO, Scorer
from src.errors import JobError, RecordError
from src.model.qwen_reward import Qwen2Reward
from src.model.ranking import choice_loss, pairwise_loss, pooled_loss, ranking_loss
from src.training.reward import PreferenceCollator, RewardTrainer, ranking_metrics
from src.training.reward_config import Model, RewardConfig, make_trainable
from src.training.run import resume_point, training_arguments

ROOT = Path(__file__).resolve().parents[2]
NAN = float("nan")


def picture(level: int) -> Image.Image:
    rng = np.random.default_rng(level)
    return Image.fromarray(rng.integers(0, 255, (60, 90 if level % 2 else 60, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.from_pretrained(NANO, dtype="float32")


@pytest.fixture
def groups() -> list[dict]:
    """Text only, one image, two images; one, two and three rejected answers."""
    return [
        {"images": [], "question": "Why?", "chosen": "So.", "rejected": ["no"], "source": "text"},
        {
            "images": [picture(0)],
            "question": "",
            "chosen": "a lake .",
            "rejected": ["two ships .", "a"],
            "source": "one",
        },
        {
            "images": [picture(1), picture(2)],
            "question": "Here <image> there <image> ?",
            "chosen": "the second is darker",
            "rejected": ["the first is darker", "neither", "both of them are seen from the air"],
            "source": "two",
        },
    ]


def test_a_mixed_batch_scores_each_answer_as_the_scorer_does(scorer, groups):  # nos. 29, 31
    batch = PreferenceCollator(scorer.encoder)(groups)
    assert len(batch["image_grid_thw"]) == 3  # each image once, however many answers it has
    with torch.inference_mode():
        values = scorer.model(
            **{k: v for k, v in batch.items() if k not in ("weights", "sources")}, return_loss=False
        ).values.view(3, -1)
    for row, group in zip(values, groups, strict=True):
        answers = [group["chosen"], *group["rejected"]]
        expected = scorer.score(
            {"images": group["images"], "question": group["question"], "text": text} for text in answers
        )
        assert row[: len(answers)].tolist() == pytest.approx(expected, abs=1e-4)
        assert row[len(answers) :].isnan().all()


def test_order_of_the_batch_and_weights_go_with_the_groups(scorer, groups):
    collator = PreferenceCollator(scorer.encoder, {"two": 0.25})
    assert collator(groups)["weights"].tolist() == [1, 1, 0.25]
    turned = collator(groups[::-1])
    assert turned["weights"].tolist() == [0.25, 1, 1]
    assert [collator.sources[i] for i in turned["sources"]] == ["two", "one", "text"]
    assert "pixel_values" not in collator(groups[:1])


def test_a_group_that_cannot_be_used_is_named(scorer, groups):
    broken = {**groups[1], "images": [b"no image"], "id": "a.json:00000007"}
    with pytest.raises(RecordError, match=r"a\.json:00000007"):
        PreferenceCollator(scorer.encoder)([broken])


@pytest.mark.parametrize("loss", [ranking_loss, choice_loss, pairwise_loss])
def test_absent_answers_change_neither_loss_nor_gradient(loss):
    short = torch.tensor([[1.0, 0.5, 2.0]], requires_grad=True)
    padded = torch.tensor([[1.0, 0.5, 2.0, NAN, NAN]], requires_grad=True)
    torch.testing.assert_close(loss(padded), loss(short))
    loss(short).sum().backward()
    loss(padded).sum().backward()
    assert padded.grad.tolist() == [[*short.grad[0].tolist(), 0, 0]]


def test_pairwise_is_the_mean_over_pairs_and_a_margin_moves_it():
    scores = torch.tensor([[2.0, 1.0, 3.5]])
    pairs = torch.tensor([[2.0, 1.0], [2.0, 3.5]])
    torch.testing.assert_close(pairwise_loss(scores)[0], ranking_loss(pairs).mean())
    torch.testing.assert_close(pairwise_loss(scores, 0.7), pairwise_loss(scores - torch.tensor([[0.7, 0, 0]])))
    torch.testing.assert_close(choice_loss(scores[:, :2], 0.7), pairwise_loss(scores[:, :2], 0.7))


def test_pooled_loss_compares_all_with_all():
    scores = torch.tensor([[2.0, 1.0, NAN], [0.5, 3.0, 1.0]])
    gaps = [chosen - rejected for chosen in (2.0, 0.5) for rejected in (1.0, 3.0, 1.0)]
    expected = -torch.nn.functional.logsigmoid(torch.tensor(gaps)).mean()
    torch.testing.assert_close(pooled_loss(scores), expected)


def test_metrics_count_pairs_and_sources():
    predictions = np.array([[2.0, 1.0, -100.0], [1.0, 1.0, 0.5], [3.0, 4.0, NAN]], np.float32)
    evaluation = SimpleNamespace(predictions=predictions, label_ids=np.array([0, 0, 1]))
    metrics = ranking_metrics(evaluation, ["a", "b"])
    assert metrics["accuracy"] == pytest.approx(2 / 4)  # a tie is wrong
    assert (metrics["accuracy_a"], metrics["accuracy_b"]) == (pytest.approx(2 / 3), 0)
    rejected = [1.0, 1.0, 0.5, 4.0]
    assert metrics["auc"] == pytest.approx(np.mean([c > r for c in (2.0, 1.0, 3.0) for r in rejected]))
    assert metrics["margin"] == pytest.approx(np.mean([1.0, 0.0, 0.5, -1.0]))
    assert (metrics["score_min"], metrics["score_max"]) == (0.5, 4.0)


@pytest.mark.parametrize(
    ("keys", "moves"),
    [
        ({}, {"reward_head"}),
        ({"train_text_model": True}, {"reward_head", "language_model"}),
        ({"train_vision_model": True, "train_value_head": False}, {"visual"}),
        ({"train_text_model": True, "lora_rank": 4}, {"reward_head", "language_model"}),
    ],
)
def test_what_was_named_moves_and_nothing_else(tmp_path, groups, scorer, keys, moves):
    model = Qwen2Reward.from_pretrained(NANO, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=3, learning_rate=1e-2, use_cpu=True, report_to=[],
        save_strategy="no", remove_unused_columns=False, logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trained = make_trainable(model, Model(**keys))
    trainer = RewardTrainer(
        trained, arguments, PreferenceCollator(scorer.encoder), groups, processing_class=scorer.encoder.processor
    )
    trainer.train()
    trainer.save_final(tmp_path / "final", torch.float32)
    after = Scorer.from_pretrained(tmp_path / "final", dtype="float32").model.state_dict()
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    parts = {part for part in ("reward_head", "language_model", "visual") for name in moved if part in name}
    assert parts == moves
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert {"ranking_accuracy", "margin", "score_min", "score_mean", "score_max", "tokens", "learning_rate"} <= set(
        logged
    )


def test_nothing_to_train_is_refused():
    with pytest.raises(JobError, match="nothing to train"):
        make_trainable(None, Model(train_value_head=False))  # type: ignore[arg-type]


def test_accumulated_micro_batches_make_the_loss_of_the_whole_batch(tmp_path, scorer, groups):
    def first_loss(batch: int, steps: int) -> tuple[float, float]:
        arguments = TrainingArguments(
            str(tmp_path), max_steps=2, per_device_train_batch_size=batch, gradient_accumulation_steps=steps,
            use_cpu=True, report_to=[], save_strategy="no", remove_unused_columns=False, logging_steps=1,
            disable_tqdm=True, learning_rate=1e-3, seed=1,
        )  # fmt: skip
        model = Qwen2Reward.from_pretrained(NANO, dtype=torch.float32)
        trainer = RewardTrainer(model, arguments, PreferenceCollator(scorer.encoder), [groups[1], groups[2]] * 4)
        trainer.train()
        one, two = (entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        return float(one), float(two)

    assert first_loss(4, 1) == pytest.approx(first_loss(2, 2), abs=1e-4)


def test_resume_points(tmp_path):
    config = RewardConfig(save_folder=str(tmp_path))
    assert resume_point(config) is None
    (tmp_path / "config.yaml").touch()
    with pytest.raises(JobError, match="holds a run already"):
        resume_point(config)
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):  # the other was being written when its process was killed
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    assert resume_point(RewardConfig(save_folder=str(tmp_path), load_path="last")).endswith("checkpoint-10")
    with pytest.raises(JobError, match="no checkpoint"):
        resume_point(RewardConfig(save_folder=str(tmp_path), load_path=str(tmp_path)))
    with pytest.raises(JobError, match="precision"):
        training_arguments(RewardConfig(save_folder=str(tmp_path), precision="int8"), best_by=None)
