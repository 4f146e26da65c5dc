"""Scores for rewards by the server: what :class:`src.rewards.rewards.Reward` takes as its scorer, for any trainer."""

from collections.abc import Iterable, Sequence
from typing import Any

from src.dataset.images import image_key
from src.errors import JobError, RecordError
from src.rewards.rewards import PairScorer
from src.serving.client import Asked, RewardClient

SHARED = 16  # items of a request, two texts each: well below the server's limits.max_texts


def server_scorer(client: RewardClient) -> PairScorer:
    """Scores by the server, or for each item the error that it met.

    Items with one question about the same images share requests, so that each image travels once for many answers.
    What the server refuses of them is asked for again item by item: none answers for another.
    """

    def ask(items: Sequence[Any], shares: Iterable[list[int]]) -> dict[int, list[float] | RecordError | JobError]:
        shares = list(shares)
        texts = [list(dict.fromkeys(text for k in share for text in items[k][2])) for share in shares]
        asked = [Asked(items[s[0]][1], items[s[0]][0], own) for s, own in zip(shares, texts, strict=True)]
        found: dict[int, list[float] | RecordError | JobError] = {}
        refused: list[int] = []
        for share, own, scores in zip(shares, texts, client.score_many(asked, errors="return"), strict=True):
            if isinstance(scores, list):
                by_text = dict(zip(own, scores, strict=True))
                found |= {k: [by_text[text] for text in items[k][2]] for k in share}
            elif isinstance(scores, RecordError) and len(share) > 1:
                refused += share
            else:
                found |= dict.fromkeys(share, scores)
        return found | (ask(items, [[k] for k in refused]) if refused else {})

    def score(items: Sequence[Any]) -> list[list[float] | RecordError | JobError]:
        found = ask(items, _shares(items))
        return [found[k] for k in range(len(items))]

    return score


def _shares(items: Sequence[Any]) -> list[list[int]]:
    """Numbers of items that have question and images in common, at most ``SHARED`` together."""
    groups: dict[Any, list[int]] = {}
    for k, (question, images, _) in enumerate(items):
        try:
            key = (question, *map(image_key, images))
        except RecordError:  # an image that cannot be decoded: by itself
            key = (k,)
        groups.setdefault(key, []).append(k)
    return [group[at : at + SHARED] for group in groups.values() for at in range(0, len(group), SHARED)]
