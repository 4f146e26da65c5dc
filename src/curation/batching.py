"""Forward passes that share whatever rows have in common: images first, then the prefix of the text.

A row is ``(image keys, token ids)``. Rows with the same images are laid together; where several of them begin alike,
the common prefix runs once, its key-value cache is expanded, and only what follows it runs per row. The prefix is found
on token ids, so sharing never changes how a text is tokenised.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from src.dataset.collate import EncodedImage, pad_right
from src.model.packing import common_prefix
from src.model.qwen_reward import Qwen2Reward

Row = tuple[tuple[str, ...], list[int]]
T = TypeVar("T")
# A vision pass takes this many 14-px patches at most (a 448-px image has 1,024), or one image.
PATCH_BUDGET = 16384


@dataclass(frozen=True)
class _Group:
    """Rows that share their images and the first ``shared`` tokens."""

    keys: tuple[str, ...]
    rows: list[int]
    shared: int


def score_rows(
    model: Qwen2Reward,
    images: Mapping[str, EncodedImage],
    rows: Sequence[Row],
    pad_id: int,
    token_budget: int,
    known: Mapping[str, Tensor] | None = None,
) -> list[float]:
    """Return the score of each row.

    Args:
        images: by key; each is encoded once.
        rows: distinct rows, each with at least one token.
        pad_id: fills rows up to the longest of a batch; it is masked, so any id does.
        token_budget: greatest rows x length of one pass; a longer row runs alone. What follows shared prefixes may take
            four times as many, cached ones included, since a cached token costs memory and hardly any work.
        known: features of images that ``encode_images`` has encoded before.
    """
    known = known or {}
    wanted = {key for keys, _ in rows for key in keys}
    features = {**known, **encode_images(model, {key: images[key] for key in wanted - set(known)})}
    run = _Pass(model, images, features, rows, pad_id, token_budget)
    groups = _shared_prefixes(rows, model.config.image_token_id)
    values = torch.zeros(len(rows))
    alone = sorted((row for group in groups if not group.shared for row in group.rows), key=lambda r: len(rows[r][1]))
    for batch in _batches(alone, lambda row: len(rows[row][1]), token_budget):
        values[batch] = run.whole(batch)
    together = sorted((group for group in groups if group.shared), key=lambda group: group.shared)
    for some in _batches(together, lambda group: group.shared, token_budget):
        for batch, scores in run.by_prefix(some):
            values[batch] = scores
    return values.tolist()


def encode_images(model: Qwen2Reward, images: Mapping[str, EncodedImage]) -> dict[str, Tensor]:
    """The vision tower's features of each image, ``(image tokens, hidden size)``; views of a few large tensors."""
    features: dict[str, Tensor] = {}
    keys = sorted(images, key=lambda key: (len(images[key].pixel_values), key))
    for batch in _batches(keys, lambda key: len(images[key].pixel_values), PATCH_BUDGET, padded=False):
        pixels = torch.cat([images[key].pixel_values for key in batch]).to(model.device)
        grids = torch.tensor([images[key].grid for key in batch], device=model.device)
        features.update(zip(batch, model.encode_images(pixels, grids), strict=True))
    return features


def _shared_prefixes(rows: Sequence[Row], image_token: int) -> list[_Group]:
    """Group rows by images; a group of several whose common prefix holds all of its image tokens shares it."""
    order = sorted(range(len(rows)), key=lambda row: rows[row])
    groups = []
    for keys, members in groupby(order, key=lambda row: rows[row][0]):
        same = list(members)
        tokens = [rows[row][1] for row in same]
        shared = common_prefix(tokens) if len(same) > 1 else 0
        if image_token in tokens[0][shared:]:
            shared = 0
        groups.append(_Group(keys, same, shared))
    return groups


def _batches(items: Sequence[T], length: Callable[[T], int], budget: int, padded: bool = True) -> Iterator[list[T]]:
    """Cut items, sorted by rising length, into runs whose padded (or summed) length stays within the budget."""
    batch: list[T] = []
    total = 0
    for item in items:
        total = (len(batch) + 1) * length(item) if padded else total + length(item)
        if batch and total > budget:
            yield batch
            batch, total = [], length(item)
        batch.append(item)
    if batch:
        yield batch


@dataclass(frozen=True)
class _Pass:
    model: Qwen2Reward
    images: Mapping[str, EncodedImage]
    features: Mapping[str, Tensor]
    rows: Sequence[Row]
    pad_id: int
    token_budget: int

    def whole(self, batch: Sequence[int]) -> Tensor:
        """Scores of rows that share nothing, ``(len(batch),)``."""
        ids, mask = pad_right([self.rows[row][1] for row in batch], self.pad_id)
        return self._forward(ids, mask, [self.rows[row][0] for row in batch]).values.cpu()

    def by_prefix(self, groups: Sequence[_Group]) -> Iterator[tuple[list[int], Tensor]]:
        """Run the prefixes of some groups in one pass, then what follows them; yields row numbers with their scores."""
        prefixes = [self.rows[group.rows[0]][1][: group.shared] for group in groups]
        ids, mask = pad_right(prefixes, self.pad_id)
        keys = [group.keys for group in groups]
        positions = self._positions(ids, mask, keys)
        output = self._forward(ids, mask, keys, position_ids=positions, use_cache=True)
        cache = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
        mask = mask.to(self.model.device)
        following = positions.masked_fill(mask == 0, -1).amax((0, 2)) + 1  # (groups,): the first position after each

        tails = [(g, row, self.rows[row][1][group.shared :]) for g, group in enumerate(groups) for row in group.rows]
        tails.sort(key=lambda tail: len(tail[2]))
        for batch in _batches(tails, lambda tail: ids.shape[1] + len(tail[2]), 4 * self.token_budget):
            owner = torch.tensor([g for g, _, _ in batch], device=self.model.device)
            tail_ids, tail_mask = (t.to(self.model.device) for t in pad_right([t for _, _, t in batch], self.pad_id))
            places = following[owner][:, None] + torch.arange(tail_ids.shape[1], device=owner.device)
            scored = self.model(
                tail_ids,
                torch.cat([mask[owner], tail_mask], dim=1),
                position_ids=places.expand(3, *places.shape),
                past_key_values=DynamicCache([(k[owner], v[owner]) for k, v in cache]),
                use_cache=True,
                return_loss=False,
            )
            yield [row for _, row, _ in batch], scored.values.cpu()

    def _forward(self, ids: Tensor, mask: Tensor, keys: Sequence[tuple[str, ...]], **options):
        shown = [self.features[key] for row in keys for key in row]
        return self.model(
            ids.to(self.model.device),
            mask.to(self.model.device),
            image_grid_thw=self._grids(keys),
            image_embeds=torch.cat(shown) if shown else None,
            return_loss=False,
            **options,
        )

    def _positions(self, ids: Tensor, mask: Tensor, keys: Sequence[tuple[str, ...]]) -> Tensor:
        device = self.model.device
        return self.model.positions(ids.to(device), mask.to(device), self._grids(keys))

    def _grids(self, keys: Sequence[tuple[str, ...]]) -> Tensor | None:
        grids = [self.images[key].grid for row in keys for key in row]
        return torch.tensor(grids, device=self.model.device) if grids else None
