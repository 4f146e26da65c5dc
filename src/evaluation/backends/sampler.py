"""Draw every row of a batch by its own rule and its own random numbers, and end it by its own rule."""

import random
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from src.evaluation.backends.base import Finish, Sampling, Text, Watcher


class RowSampler(LogitsProcessor):
    """Leave one token possible where a row is drawn at random; greedy rows stay as they are.

    ``generate`` then takes the greatest logit of every row. Each step spends one number of a row's own generator, on
    the cumulative probability in the order of the vocabulary. So a row's text depends on its seed and its logits alone,
    and logits that differ in their last bits, as they do between batches of different shape, almost never change it.

    Args:
        samplings: of each row.
        seeds: of each row; None draws anew each time.
        forbidden: tokens never to be drawn.
    """

    def __init__(self, samplings: Sequence[Sampling], seeds: Sequence[int | None], forbidden: Collection[int]):
        self.forbidden = sorted(forbidden)
        self.random = [row for row, sampling in enumerate(samplings) if sampling.temperature]
        drawn = [samplings[row] for row in self.random]
        self.generators = [random.Random(seeds[row]) for row in self.random]
        self.temperature = torch.tensor([[sampling.temperature] for sampling in drawn])
        self.top_p = torch.tensor([[sampling.top_p] for sampling in drawn], dtype=torch.float64)
        self.top_k = torch.tensor([[sampling.top_k] for sampling in drawn])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002  # what transformers passes
        scores[:, self.forbidden] = -torch.inf
        if self.random:
            numbers = torch.tensor([[generator.random()] for generator in self.generators], dtype=torch.float64)
            tokens = self._draw(scores[self.random], numbers.to(scores.device))
            scores[self.random] = torch.full_like(scores[self.random], -torch.inf).scatter(1, tokens, 0.0)
        return scores

    def _draw(self, scores: Tensor, numbers: Tensor) -> Tensor:
        """Tokens ``(rows, 1)`` for logits ``(rows, vocabulary)`` and numbers ``(rows, 1)`` in [0, 1)."""
        device, size = scores.device, scores.shape[1]
        probabilities = (scores.double() / self.temperature.to(device)).softmax(-1)
        ordered, order = probabilities.sort(-1, descending=True)
        top_k = self.top_k.to(device)
        # A token is in as long as those before it have not reached top_p together; the first one always is.
        kept = ordered.cumsum(-1) - ordered < self.top_p.to(device)
        kept &= torch.arange(size, device=device) < torch.where(top_k > 0, top_k, size)
        cumulative = torch.zeros_like(ordered).scatter(1, order, ordered * kept).cumsum(-1)
        total = cumulative[:, -1:]
        below = torch.minimum(numbers * total, torch.nextafter(total, torch.zeros_like(total)))
        return torch.searchsorted(cumulative, below, right=True)


class RowStops(StoppingCriteria):
    """End each row at a token that ends texts, at its own greatest length, or once one of its stop strings occurs.

    Args:
        samplings: of each row.
        prompt: tokens before the texts.
        ends: tokens that end a text.
        decode: the tokeniser's.

    Attributes:
        lengths: tokens of each row's text, the ending token not counted; None while it goes on.
        finish: how it ended.
    """

    def __init__(self, samplings: Sequence[Sampling], prompt: int, ends: Collection[int], decode: Callable[..., str]):
        self.samplings, self.prompt, self.ends, self.decode = samplings, prompt, set(ends), decode
        self.lengths: list[int | None] = [None] * len(samplings)
        self.finish: list[Finish] = ["length"] * len(samplings)
        # A token is at least a byte of text, so that a stop string lies within so many of the last tokens.
        self.tails = [max((len(stop.encode()) for stop in sampling.stop), default=0) + 4 for sampling in samplings]

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:  # noqa: ARG002
        made = input_ids.shape[1] - self.prompt
        last = input_ids[:, -1].tolist()
        for row, sampling in enumerate(self.samplings):
            if self.lengths[row] is not None:
                continue
            if last[row] in self.ends:
                self.lengths[row], self.finish[row] = made - 1, "stop"
            elif sampling.stop and self._stopped(input_ids[row], row, made):
                self.lengths[row], self.finish[row] = made, "stop"
            elif made >= sampling.max_new_tokens:
                self.lengths[row] = made
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)

    def texts(self, ids: Tensor) -> list[Text]:
        """The text of each row so far, for token ids ``(rows, prompt + made)``."""
        texts = []
        for row, sampling, length, finish in zip(ids, self.samplings, self.lengths, self.finish, strict=True):
            made = row[self.prompt :][:length].tolist()
            texts.append(Text(self.decode(made, skip_special_tokens=not sampling.special_tokens), finish))
        return texts

    def _stopped(self, ids: Tensor, row: int, made: int) -> bool:
        sampling = self.samplings[row]
        tail = ids[-min(self.tails[row], made) :].tolist()
        text = self.decode(tail, skip_special_tokens=not sampling.special_tokens)
        return any(stop in text for stop in sampling.stop)


class RowWatch(StoppingCriteria):
    """Tell the texts so far after every token, and end all rows if that is asked for.

    Args:
        seen: gets the text of each row.
        stops: of the same rows, asked before.
    """

    def __init__(self, seen: Watcher, stops: RowStops):
        self.seen, self.stops = seen, stops

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:  # noqa: ARG002
        ended = self.seen([text.text for text in self.stops.texts(input_ids)])
        return torch.full((len(input_ids),), ended, device=input_ids.device)
