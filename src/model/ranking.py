"""The training objective of the score model, as functions of scores alone."""

import torch
from torch import Tensor

_NEVER = -1e30  # the score of an answer that is not there: finite, so that its gradient is 0 and not NaN


def ranking_loss(scores: Tensor) -> Tensor:
    """Return the Plackett-Luce negative log-likelihood of the given order, one value per group.

    ``sum_i -log( exp(s_i) / sum_{j >= i} exp(s_j) )`` (Plackett 1975), by a running log-sum-exp in float32, so that
    it is finite for any finite gap. For K = 2 it is ``-logsigmoid(s_chosen - s_rejected)``.

    Args:
        scores: ``(groups, K)``, each row best first; NaN for answers that a group of fewer does not have.

    Returns:
        ``(groups,)`` float32, each >= 0.
    """
    absent = torch.isnan(scores)
    s = scores.float().masked_fill(absent, _NEVER)
    tails = torch.logcumsumexp(s.flip(-1), dim=-1).flip(-1)
    return (tails - s).masked_fill(absent, 0).sum(-1)


def choice_loss(scores: Tensor, margin: float = 0.0) -> Tensor:
    """Return the negative log-likelihood that the first of K is chosen, the others having no order among themselves.

    ``-log( exp(s_1) / sum_j exp(s_j) )``: the first term of :func:`ranking_loss`, and all of it for K = 2.

    Args:
        scores: ``(groups, K)``, the chosen one first; NaN for absent answers.
        margin: by how much the chosen one must lead, added to all others.

    Returns:
        ``(groups,)`` float32, each >= 0.
    """
    s = scores.float().masked_fill(torch.isnan(scores), _NEVER)
    return torch.logsumexp(torch.cat([s[:, :1], s[:, 1:] + margin], -1), dim=-1) - s[:, 0]


def pairwise_loss(scores: Tensor, margin: float = 0.0) -> Tensor:
    """Return the mean of ``-logsigmoid(chosen - rejected - margin)`` over the rejected answers of each group.

    What the published program trains on: every rejected answer makes a pair (Bradley and Terry 1952).

    Args:
        scores: ``(groups, K)``, the chosen one first; NaN for absent answers, at least one of the others present.

    Returns:
        ``(groups,)`` float32, each >= 0.
    """
    rejected = scores[:, 1:].float()
    absent = torch.isnan(rejected)
    lost = torch.nn.functional.softplus(rejected.masked_fill(absent, 0) - scores[:, :1].float() + margin)
    return lost.masked_fill(absent, 0).sum(-1) / (~absent).sum(-1)


def pooled_loss(scores: Tensor) -> Tensor:
    """Return the mean ``-logsigmoid(chosen - rejected)`` over every chosen and every rejected answer of a batch.

    A group's own likelihood leaves each prompt an offset of its own; selection compares scores across a whole data set,
    and this term makes them comparable. A scalar, float32.

    Args:
        scores: ``(groups, K)``, the chosen one first; NaN for absent answers.
    """
    s = scores.float()
    rejected = s[:, 1:].flatten()
    return torch.nn.functional.softplus(rejected[~torch.isnan(rejected)][None] - s[:, :1]).mean()


def ranking_accuracy(scores: Tensor) -> Tensor:
    """Return the share of pairs (i before j) with ``s_i > s_j``, one value in 0..1 per group; a tie counts as wrong.

    Args:
        scores: ``(groups, K)`` with K >= 2, each row best first.
    """
    k = scores.shape[-1]
    better, worse = torch.triu_indices(k, k, offset=1, device=scores.device)
    return (scores[..., better] > scores[..., worse]).float().mean(-1)
