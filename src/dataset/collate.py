"""From pairs to tensors: images to patches, chat text to token ids, rows to right-padded batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.chat import Template, pair_messages, render, turn_messages
from src.dataset.images import ImageLimits, ImageSource, open_image
from src.errors import RecordError

Pair = Mapping[str, Any]
"""``image`` or ``images`` with ``text`` and an optional ``question``; or ``images`` with ``turns``."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One image, ready for the vision tower.

    Attributes:
        pixel_values: ``(patches, channels * 2 * 14 * 14)`` float32, normalised.
        grid: (1, rows of patches, columns of patches).
        width, height: of the original, in pixels.
    """

    pixel_values: Tensor
    grid: tuple[int, int, int]
    width: int
    height: int


@dataclass(frozen=True)
class PairEncoder:
    """Turns pairs into what the model reads, under one processor and one template. Safe to share between threads.

    Attributes:
        processor: the checkpoint's ``AutoProcessor``. Its torchvision image backend is the default of this project:
            2 to 4 times as fast as the Pillow one on one core (0.45 against 0.91 ms from 224 to 112 px, 2.2 against
            9.4 ms at 448 px), and at most one grey level (0.03 after normalisation) away from it.
        max_tokens: longest chat text, image tokens included, before a text is refused as too long.
    """

    processor: Any
    template: Template = "answer"
    image_root: Path | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)
    max_tokens: int = 8192

    def image(self, source: ImageSource) -> EncodedImage:
        """Open and patch one image.

        Raises:
            RecordError: as :func:`src.dataset.images.open_image`.
        """
        picture = open_image(source, self.image_root, self.limits)
        try:
            patched = self.processor.image_processor(images=[picture], return_tensors="pt")
        except ValueError as error:
            raise RecordError("unreadable_image", f"the model's image processor refuses it: {error}") from error
        t, h, w = patched["image_grid_thw"][0].tolist()
        return EncodedImage(patched["pixel_values"], (t, h, w), picture.width, picture.height)

    def prompt(self, pair: Pair, images: Sequence[EncodedImage]) -> str:
        """Return the chat text of a pair, each image written as as many ``<|image_pad|>`` as it has image tokens.

        Raises:
            RecordError: as :func:`src.chat.pair_messages`; ``bad_record`` for a text that is not a string;
                ``image_too_large`` if the images alone reach ``max_tokens``.
        """
        if turns := pair.get("turns"):
            messages = turn_messages(turns, images)
        else:
            for key in ("text", "question"):
                if not isinstance(pair.get(key) or "", str):
                    raise RecordError("bad_record", f"{key} is {type(pair[key]).__name__}, not text")
            messages = pair_messages(images, pair.get("text") or "", pair.get("question") or "", self.template)
        pad, merge = self.processor.image_token, self.processor.image_processor.merge_size**2
        head, *rest = render(self.processor.tokenizer, messages, "answer" if turns else self.template).split(pad)
        if len(rest) != len(images):
            raise RecordError("reserved_token", f"the texts together spell {pad}, which stands for image features")
        counts = [image.grid[0] * image.grid[1] * image.grid[2] // merge for image in images]
        if sum(counts) >= self.max_tokens:
            size = f"{sum(counts)} image tokens; the limit is {self.max_tokens} tokens in all"
            raise RecordError("image_too_large", f"{size}: shrink images with max_pixels")
        return head + "".join(pad * n + piece for n, piece in zip(counts, rest, strict=True))

    def token_ids(self, prompts: Sequence[str]) -> list[list[int] | RecordError]:
        """Tokenise; a prompt longer than ``max_tokens`` becomes a RecordError ``text_too_long`` in its place."""
        # No token of a natural text is 64 characters long: this spares the tokeniser hopeless ones.
        if not prompts:
            return []
        rows: list[list[int] | RecordError] = []
        short = [prompt if len(prompt) <= 64 * self.max_tokens else "" for prompt in prompts]
        for prompt, ids in zip(prompts, self.processor.tokenizer(short)["input_ids"], strict=True):
            if len(ids) <= self.max_tokens and (ids or not prompt):
                rows.append(ids)
            else:
                size = f"{len(ids)} tokens" if ids else f"{len(prompt):,} characters"
                rows.append(RecordError("text_too_long", f"{size}; the limit is {self.max_tokens} tokens"))
        return rows


def pair_images(pair: Pair) -> list[ImageSource]:
    """Return the images of a pair, from ``images`` or ``image``.

    Raises:
        RecordError: ``bad_record`` if both are given, or ``images`` is not a sequence of images.
    """
    one, several = pair.get("image"), pair.get("images")
    if one is not None and several is not None:
        raise RecordError("bad_record", "give image or images, not both")
    if several is None:
        return [] if one is None else [one]
    if not isinstance(several, Sequence) or isinstance(several, str | bytes):
        raise RecordError("bad_record", f"images is a {type(several).__name__}, not a list")
    return list(several)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ``(rows, longest)`` token ids and attention mask (1 for real tokens)."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
