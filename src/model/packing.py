"""Several texts in one row of a batch, none of which sees another.

Answers to one prompt (``pack`` and ``packed_*``): the prompt runs once for all of them. A packed row is prefix,
answer 1, ..., answer K, padding; ``segment_ids`` says which token is which: 0 for the prefix, 1..K for the answers,
-1 for padding. Every answer continues the prefix at the position where the prefix ends.

Whole conversations (``fill_rows`` and ``conversation_positions``), for training with little padding: each begins at
position 0, by which the models of transformers tell them apart where no attention mask is given.
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


def fill_rows(lengths: Sequence[int], width: int | None) -> list[list[int]]:
    """Distribute texts over rows of at most ``width`` tokens, which no text is longer than; None: all in one row.

    First fit, longest first: the rows are at most 11/9 as many as are needed.

    Returns:
        for each row the numbers of its texts.
    """
    if width is None:
        return [list(range(len(lengths)))]
    rows: list[list[int]] = []
    left: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda k: (-lengths[k], k)):
        row = next((k for k, room in enumerate(left) if room >= lengths[number]), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(width)
        rows[row].append(number)
        left[row] -= lengths[number]
    return rows


def conversation_positions(
    ids: Tensor, grids: Sequence[tuple[int, int, int]], image_token: int, merge_size: int
) -> Tensor:
    """Return ``(4, length)``: the number of each token in its text, and its three M-RoPE positions.

    The latter are what ``Qwen2VLModel.get_rope_index`` gives, without a model at hand.

    Args:
        ids: ``(length,)`` token ids of one text, each image as its whole run of ``image_token``.
        grids: (frames, rows, columns) of patches of each image; ``merge_size`` ** 2 of them are a token.
    """
    numbers = torch.arange(len(ids))
    positions = numbers.expand(4, -1).clone()
    images = (ids == image_token).nonzero().flatten()
    done = 0
    for frames, height, width in grids:
        sides = frames, height // merge_size, width // merge_size
        count = sides[0] * sides[1] * sides[2]
        first = int(images[done])
        start = positions[1, first].item()
        positions[1:, first : first + count] = start + torch.cartesian_prod(*map(torch.arange, sides)).T
        positions[1:, first + count :] = start + max(sides[1:]) + numbers[: len(ids) - first - count]
        done += count
    return positions
