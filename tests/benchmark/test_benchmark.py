"""Every entry of the benchmark at a small size: what it says is so, by a wide margin, on a busy machine too."""

import re
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from python_script import benchmark
from src.benchmark.best_of_n import allowed_ratio, distinct_answers
from src.benchmark.jobs import PARTS, Clock
from src.benchmark.measure import QUESTION, noise, peak_memory
from src.benchmark.pairs import published_loop
from src.benchmark.shapes import PEAKS, SHAPES, pair_flops, random_scorer, utilisation
from src.curation.scorer import Scorer
from src.errors import JobError
from tests.conftest import LEGACY

TINY_TEXT = {
    "hidden_size": 256, "intermediate_size": 300, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "rope_parameters": SHAPES["7b"][0]["rope_parameters"],
}  # fmt: skip
TINY_VISION = {"depth": 1, "embed_dim": 128, "num_heads": 2, "hidden_size": 256}


def run(capsys, *arguments: str) -> tuple[float, str]:
    benchmark.main(arguments)
    printed = capsys.readouterr().out
    return float(re.fullmatch(r"ratio ([\d.]+)", printed.splitlines()[-1])[1]), printed


def test_captions_of_one_image_are_scored_faster_than_by_the_published_loop(capsys):
    """The program itself refuses scores that differ by more than 1e-4."""
    ratio, printed = run(capsys, "captions", "--images", "2", "--repeats", "1")
    assert ratio >= 1.8
    assert "5 captions of 12 words for each of 2 448-px images" in printed


def test_scores_that_differ_are_refused(capsys, monkeypatch):
    monkeypatch.setattr("src.benchmark.pairs.published_loop", lambda *args: [1.0] * len(args[1]))
    with pytest.raises(SystemExit, match="scores differ by"):
        benchmark.main(["captions", "--images", "1", "--side", "56", "--model", str(LEGACY / "checkpoint")])


def test_candidates_are_judged_faster_than_by_the_published_loop(capsys):
    """The program itself refuses scores that differ by more than 1e-4."""
    ratio, printed = run(capsys, "bon", "--tokens", "4", "--candidates", "16", "--side", "224", "--repeats", "1")
    allowed = float(re.search(r"operations allow ([\d.]+)", printed)[1])
    assert 2.5 <= ratio <= 2 * allowed
    assert "16 answers of 4 tokens to one 224-px image" in printed


def test_answers_to_be_judged_are_distinct_and_of_their_length():
    scorer = Scorer.from_pretrained(device="cpu")
    answers = distinct_answers(scorer, np.random.default_rng(1), 5, 40)
    assert len(set(answers)) == 40
    tokenise = scorer.encoder.processor.tokenizer
    assert {len(tokenise(text, add_special_tokens=False)["input_ids"]) for text in answers} == {5}
    with pytest.raises(JobError, match="of answers of 1 tokens only"):
        distinct_answers(scorer, np.random.default_rng(1), 1, 40)


class Untracked(nullcontext):
    """Counts all together: the hooks that count by module cannot read the model's own output class."""

    parents = frozenset({"Global"})


def test_what_operations_allow_is_what_torch_counts():
    """Products of the scorer's two passes over those of a forward for each answer."""
    scorer = Scorer.from_pretrained(device="cpu", max_pixels=112**2)
    scorer.model.set_attn_implementation("eager")  # every product of it is counted
    image = noise(np.random.default_rng(0), 112)
    answers = distinct_answers(scorer, np.random.default_rng(1), 4, 6)
    counted = []
    for rows in ([[text] for text in answers], [answers]):
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = Untracked()
        with counter:
            for some in rows:
                scorer.score_candidates([image], QUESTION, some)
        counted.append(counter.get_total_flops())
    assert allowed_ratio(scorer, image, answers) == pytest.approx(counted[0] / counted[1], rel=0.01)


def test_batches_generate_faster_than_the_published_loop(capsys):
    """The program itself refuses texts that differ."""
    ratio, printed = run(capsys, "generate", "--requests", "16", "--tokens", "32", "--repeats", "1")
    assert ratio >= 2.5
    assert "32 tokens for each of 16 112-px images, 16 in a batch" in printed
    ratio, printed = run(capsys, "generate", "--requests", "16", "--tokens", "32", "--repeats", "1", "--ragged")
    assert ratio >= 1.5
    assert "32 tokens at most" in printed


def test_texts_that_differ_are_refused(capsys, monkeypatch):
    monkeypatch.setattr("src.benchmark.generation.published_loop", lambda *args: ["x"] * len(args[2]))
    with pytest.raises(SystemExit, match="2 texts differ"):
        benchmark.main(["generate", "--requests", "2", "--tokens", "4", "--repeats", "1"])


def test_time_outside_the_model_is_told_by_part(capsys):
    share, printed = run(capsys, "outside", "--pairs", "192", "--repeats", "1")
    told = dict(re.findall(r"^(\w+) +[\d.]+ s +([\d.]+)%", printed, re.M))
    assert list(told) == list(PARTS)
    assert sum(map(float, told.values())) == pytest.approx(100, abs=0.5)
    assert 100 * share == pytest.approx(100 - float(told["model"]), abs=1)
    assert 0 < share < 0.5


def test_a_part_within_a_part_has_its_own_time_alone():
    clock = Clock()
    steps = clock.steps("steps", lambda: iter([1, 2]))
    slow = clock.timed("slow", time.sleep)
    with clock.part("rest"):
        time.sleep(0.05)
        slow(0.1)
        assert list(steps()) == [1, 2]
        time.sleep(0.05)
    assert clock.spent["rest"] == pytest.approx(0.1, abs=0.045)
    assert clock.spent["slow"] == pytest.approx(0.1, abs=0.045)
    assert clock.spent["steps"] < 0.05


def test_memory_hardly_grows_with_the_records(capsys):
    """One window of pairs, or six of them."""
    tiny = ["--model", str(LEGACY / "checkpoint"), "--images", "8"]
    ratio, printed = run(capsys, "memory", "--few", "260", "--many", "1560", *tiny)
    assert 0.7 < ratio <= 1.3
    assert "1,560 records" in printed


def test_peak_memory_is_that_of_the_code_alone():
    small, large = (peak_memory(f"x = bytearray({size})\nx[::4096] = x[::4096]", []) for size in (1, 2**27))
    assert small < 100 * 2**20
    assert 2**27 <= large < small + 1.2 * 2**27
    with pytest.raises(JobError, match="ZeroDivisionError"):
        peak_memory("1 / 0", [])


def test_selection_is_faster_than_the_published_loader(capsys):
    """The program itself refuses another number of rows kept, or another lowest score."""
    ratio, _ = run(capsys, "select", "--rows", "200000", "--repeats", "1", "--files", "100")
    assert ratio >= 1.2


def test_selection_by_class_takes_little_memory(capsys):
    share, printed = run(capsys, "quota", "--rows", "100000", "--classes", "7")
    assert 0.02 < share < 0.6
    assert "each of 7 classes of 100,000 rows" in printed


@pytest.mark.parametrize(("side", "text"), [(112, "two ships"), (224, "two ships beside a pier and a white car")])
def test_operations_of_a_pair_are_those_that_torch_counts(side, text):
    scorer = Scorer.from_pretrained(device="cpu")
    scorer.model.set_attn_implementation("eager")  # every product of it is counted
    image = scorer.encoder.image(noise(np.random.default_rng(0), side))
    (ids,) = scorer.encoder.token_ids([scorer.encoder.prompt({"text": text}, [image])])
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        scorer.model(
            torch.tensor([ids]),
            pixel_values=image.pixel_values,
            image_grid_thw=torch.tensor([image.grid]),
            return_dict=False,
        )
    assert pair_flops(scorer.model.config, len(ids), len(image.pixel_values)) == counter.get_total_flops()


@pytest.mark.parametrize(("name", "billions"), [("2b", 2.21), ("7b", 7.75)])
def test_shapes_have_the_true_number_of_weights(name, billions):
    """Qwen2-VL-2B has 2.21 billion weights; 7B has 8.29, of which 0.545 are a language-model head, not there here."""
    model = random_scorer(*SHAPES[name], "meta", torch.bfloat16, 448).model
    assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


def test_a_random_model_scores_the_same_both_ways_and_tells_its_use(tmp_path):
    scorer = random_scorer(TINY_TEXT, TINY_VISION, "cpu", torch.float32, 112)
    images = [noise(np.random.default_rng(seed), 112) for seed in range(3)]
    texts = ["a pier", "two red ships near a pier", "cars"]
    ours = scorer.score([{"image": image, "text": text} for image, text in zip(images, texts, strict=True)])
    assert ours == pytest.approx(published_loop(scorer, images, "", texts), abs=1e-5)
    assert scorer.encoder.image(noise(np.random.default_rng(0), 448)).grid == (1, 8, 8)
    flops = pair_flops(scorer.model.config, 64 // 4 + 64, 64)
    said = utilisation(scorer, 112, PEAKS["A100"] / flops / 2, PEAKS["A100"])
    assert said.split() == ["156.00", "TFLOP/s,", "50.0%", "of", "the", "peak"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_true_shapes_without_a_gpu_are_refused_in_one_sentence(capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(["score", "--shape", "7b"])
    assert caught.value.code == 2
    assert "--shape 7b needs a GPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_true_2b_shape_on_a_gpu(capsys):
    ratio, printed = run(capsys, "score", "--shape", "2b", "--answers", "32", "--repeats", "2")
    assert ratio >= 1.5
    assert "TFLOP/s" in printed
