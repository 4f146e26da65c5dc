"""The objective against its obvious, slow twin, and where the twin overflows."""

import itertools
import math

import pytest
import torch

from src.model.ranking import choice_loss, pairwise_loss, pooled_loss, ranking_accuracy, ranking_loss


def slow_loss(scores: list[float]) -> float:
    return sum(math.log(sum(math.exp(s - scores[i]) for s in scores[i:])) for i in range(len(scores)))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_loss_equals_its_twin(k):
    scores = torch.randn(20, k, generator=torch.Generator().manual_seed(k), dtype=torch.float64) * 3
    expected = torch.tensor([slow_loss(row) for row in scores.tolist()])
    torch.testing.assert_close(ranking_loss(scores), expected.float())


def test_two_candidates_are_minus_log_sigmoid_of_the_difference():
    scores = torch.tensor([[1.5, 0.2], [-3.0, 4.0]])
    expected = -torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1])
    torch.testing.assert_close(ranking_loss(scores), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gap", [1000.0, -1000.0])
@pytest.mark.parametrize("objective", [ranking_loss, choice_loss, pairwise_loss, pooled_loss])
def test_huge_gaps_stay_finite_with_their_gradient(objective, dtype, gap):
    scores = torch.tensor([[gap, 0.0, gap / 2]], dtype=dtype, requires_grad=True)
    loss = objective(scores).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()


def test_accuracy_counts_pairs_and_a_tie_is_wrong():
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
    slow = [sum(a > b for a, b in itertools.combinations(row, 2)) / 3 for row in scores.tolist()]
    torch.testing.assert_close(ranking_accuracy(scores), torch.tensor(slow))
    assert slow == [2 / 3, 2 / 3]


def test_choice_is_the_first_term_of_the_ranking():
    scores = torch.tensor([[1.0, 3.0, 2.0], [0.5, -1000.0, 0.0]])
    expected = [-math.log(math.exp(1) / (math.exp(1) + math.exp(3) + math.exp(2))), -math.log(1 / (1 + math.exp(-0.5)))]
    torch.testing.assert_close(choice_loss(scores), torch.tensor(expected))
    torch.testing.assert_close(choice_loss(scores[:, :2]), ranking_loss(scores[:, :2]))
