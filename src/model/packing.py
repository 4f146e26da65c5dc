"""Several answers to one prompt in one row: the prompt runs once, and no answer sees another.

A packed row is prefix, answer 1, ..., answer K, padding; ``segment_ids`` says which token is which: 0 for the prefix,
1..K for the answers, -1 for padding. Every answer continues the prefix at the position where the prefix ends.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def common_prefix(rows: Sequence[list[int]]) -> int:
    """Return how many leading tokens all rows share, leaving at least one token of each to be read at."""
    first, last = min(rows), max(rows)  # in sorted order, what these two have in common, all have
    limit = min(map(len, rows)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)


def pack(groups: Sequence[Sequence[list[int]]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Lay each group's rows into one, around the longest prefix they share (all but one token at most).

    Args:
        groups: per group its token lists, as many as it has answers.

    Returns:
        ``input_ids`` and ``segment_ids``, both ``(groups, longest)``.
    """
    ids, segments = [], []
    for rows in groups:
        shared = common_prefix(rows)
        tails = [row[shared:] for row in rows]
        ids.append(torch.tensor([*rows[0][:shared], *(token for tail in tails for token in tail)]))
        lengths = torch.tensor([shared, *map(len, tails)])
        segments.append(torch.repeat_interleave(torch.arange(len(lengths)), lengths))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True, padding_value=pad_id), pad(segments, batch_first=True, padding_value=-1)


def packed_mask(segment_ids: Tensor) -> Tensor:
    """Return ``(rows, 1, length, length)``, True where a token may look: back, at the prefix and its own answer."""
    length = segment_ids.shape[1]
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    back = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    # A padding token looks at its like only, so that no row of the softmax is empty.
    return (back & ((key == 0) | (key == query)) & ((key >= 0) | (query < 0)))[:, None]


def packed_positions(prefix_positions: Tensor, segment_ids: Tensor) -> Tensor:
    """Return ``(3, rows, length)``: the prefix's own positions, and each answer counting on from their greatest.

    Args:
        prefix_positions: ``(3, rows, length)``, right wherever ``segment_ids`` is 0.
    """
    prefix = segment_ids == 0
    following = prefix_positions.masked_fill(~prefix, -1).amax((0, 2)) + 1
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    starts = torch.ones_like(prefix)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    offset = index - (index * starts).cummax(1).values
    return torch.where(prefix, prefix_positions, following[:, None] + offset)


def packed_ends(segment_ids: Tensor) -> Tensor:
    """Return ``(rows, K)`` indexes of the last token of each answer, K being the most of any row; -1 for none."""
    answers = torch.arange(1, int(segment_ids.max()) + 1, device=segment_ids.device)
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    return torch.where(segment_ids[:, None] == answers[None, :, None], index, -1).amax(-1)
