"""Conversations as Qwen2-VL trains on them: which, as one checked table, each as tokens, and in packed batches."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset as Table
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from src.chat import pair_messages, render, turn_messages
from src.curation.select import kept_rows
from src.dataset.arrow_cache import ERRORS, IMAGE, build_table, checked, image_entry, is_built, open_table
from src.dataset.collate import EncodedImage, PairEncoder
from src.dataset.records import DataSpec, Layout, Record, file_fingerprint, input_fingerprint, inspect, read_records
from src.errors import JobError, RecordError
from src.model.packing import conversation_positions, fill_rows
from src.training.selected import selected_data
from src.training.vlm_config import Data

IGNORED = -100  # label of a token that is not to be learned
TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("images", pa.list_(IMAGE)),
        ("turns", pa.list_(TURN)),  # of a conversation
        ("question", pa.string()),  # else this, and
        ("answers", pa.list_(pa.string())),  # each of these is an answer to it
    ]
)
# Written out in a text they would end a turn or begin one.
_TURN_TOKENS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens.

    Attributes:
        ids: of all tokens, each image as its whole run of image tokens.
        labels: ``ids`` where an answer of the assistant is, its ``<|im_end|>`` included, else ``IGNORED``.
        prompt: how many tokens come before the last answer.
    """

    ids: list[int]
    labels: list[int]
    prompt: int
    images: list[EncodedImage]


def encode_conversation(
    encoder: PairEncoder, row: Mapping[str, Any], answer: int = 0, images: list[EncodedImage] | None = None
) -> Encoded:
    """Encode a row of ``SCHEMA``: its conversation, or its question with one of its answers.

    Each answer is tokenised apart from what comes before it, as it is when it is generated.

    Args:
        images: those of the row, if they are encoded already.

    Raises:
        RecordError: as :meth:`PairEncoder.image` and :func:`src.chat.turn_messages`; ``empty_text`` for any blank
            answer, ``reserved_token``, ``text_too_long`` beyond ``encoder.max_tokens``.
    """
    texts = [turn["content"] for turn in row["turns"]] or [row["question"], row["answers"][answer]]
    if found := next((token for token in _TURN_TOKENS if any(token in text for text in texts)), None):
        raise RecordError("reserved_token", f"a text contains {found}, which parts the turns of a conversation")
    images = [encoder.image(image) for image in row["images"]] if images is None else images
    if row["turns"]:
        messages = turn_messages(row["turns"], images)
    else:
        messages = pair_messages(images, row["answers"][answer], row["question"])
    tokenizer, pad = encoder.processor.tokenizer, encoder.processor.image_token
    pieces = list(_pieces(tokenizer, messages))
    if sum(text.count(pad) for text, _ in pieces) != len(images):
        raise RecordError("reserved_token", f"the texts together spell {pad}, which stands for image features")
    merge = encoder.processor.image_processor.merge_size**2
    counts = iter([image.grid[0] * image.grid[1] * image.grid[2] // merge for image in images])
    ids: list[int] = []
    labels: list[int] = []
    prompt = 0
    for text, is_answer in pieces:
        head, *rest = text.split(pad)
        whole = head + "".join(pad * next(counts) + piece for piece in rest)
        if len(ids) + len(whole) > 64 * encoder.max_tokens:  # no token of a natural text has 64 characters
            raise RecordError("text_too_long", f"{len(whole):,} characters; the limit is {encoder.max_tokens} tokens")
        tokens = tokenizer(whole, add_special_tokens=False)["input_ids"] if whole else []
        prompt = len(ids) if is_answer else prompt
        ids += tokens
        labels += tokens if is_answer else [IGNORED] * len(tokens)
    if len(ids) > encoder.max_tokens:
        raise RecordError("text_too_long", f"{len(ids)} tokens; the limit is {encoder.max_tokens} (data.cutoff_len)")
    return Encoded(ids, labels, prompt, images)


def _pieces(tokenizer: Any, messages: list[dict[str, Any]]) -> Iterator[tuple[str, bool]]:
    """The chat text, cut before and after every answer; whether a piece is one, its end of turn included."""
    whole, done = render(tokenizer, messages), 0
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if number == 0:
            raise RecordError("bad_record", "the conversation begins with an answer")
        answer = "".join(part["text"] for part in message["content"])
        if not answer.strip():
            raise RecordError("empty_text", "an answer of the assistant is empty")
        before = tokenizer.apply_chat_template(messages[:number], tokenize=False, add_generation_prompt=True)
        if not whole.startswith(before + answer + _TURN_TOKENS[1]):
            raise RecordError("bad_record", "the chat template does not write answers as they are, ended by <|im_end|>")
        end = len(before) + len(answer) + len(_TURN_TOKENS[1])
        yield whole[done : len(before)], False
        yield whole[len(before) : end], True
        done = end
    yield whole[done:], False


@dataclass
class Conversations:
    """Conversations of a data set; a record with several answers (captions) is as many.

    Attributes:
        table: a row of ``SCHEMA`` for each usable record.
        index: ``{"row", "answer"}`` of each conversation, what a trainer draws from.
        root: folder that image paths are relative to and must stay inside.
        summary: what the data held, in words.
    """

    table: Table
    root: Path
    summary: str

    def __post_init__(self) -> None:
        counts = np.maximum(pa.compute.list_value_length(self.table.data.column("answers")).to_numpy(), 1)
        rows = np.repeat(np.arange(len(counts)), counts)
        self.index = Table.from_dict({"row": rows, "answer": np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]})


@dataclass
class ConversationCollator:
    """Turns numbers of conversations into a batch whose rows hold several of them each, so that little is padding.

    No conversation sees another: each begins at position 0, which is how attention tells them apart
    (:mod:`src.model.packing`). Where attention takes time by the square of a row (``one_row=False``), rows are twice
    as long as the longest conversation, so that others fill what it leaves; FlashAttention takes all of them in one.

    A batch without an image gets a blank one that nothing is learned from, so that every process of a sharded model
    runs the same layers.
    """

    data: Conversations
    encoder: PairEncoder
    one_row: bool = False

    def __call__(self, samples: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``labels`` (rows, length), ``position_ids`` (4, rows, length), ``pixel_values`` and
        ``image_grid_thw``."""
        encoded = [self._encode(sample) for sample in samples]
        if not any(one.images for one in encoded):
            encoded.append(self.blank())
        tokenizer, merge = self.encoder.processor.tokenizer, self.encoder.processor.image_processor.merge_size
        image_token = tokenizer.convert_tokens_to_ids(self.encoder.processor.image_token)
        lengths = [len(one.ids) for one in encoded]
        rows = fill_rows(lengths, None if self.one_row else 2 * max(lengths))
        ids, labels, positions, images = [], [], [], []
        for row in rows:
            texts = [torch.tensor(encoded[k].ids) for k in row]
            ids.append(torch.cat(texts))
            labels.append(torch.cat([torch.tensor(encoded[k].labels) for k in row]))
            grids = [[image.grid for image in encoded[k].images] for k in row]
            each = [conversation_positions(t, g, image_token, merge) for t, g in zip(texts, grids, strict=True)]
            positions.append(torch.cat(each, dim=1).T)
            images += [image for k in row for image in encoded[k].images]
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
            "labels": pad(labels, batch_first=True, padding_value=IGNORED),
            # Padding is at position 0, too: a conversation of its own, token by token.
            "position_ids": pad(positions, batch_first=True).permute(2, 0, 1).contiguous(),
            "pixel_values": torch.cat([image.pixel_values for image in images]),
            "image_grid_thw": torch.tensor([image.grid for image in images]),
        }

    def _encode(self, sample: Mapping[str, int]) -> Encoded:
        row = self.data.table[sample["row"]]
        try:
            return encode_conversation(self.encoder, row, sample["answer"])
        except RecordError as error:
            raise JobError(f"{row['id']} has changed since the data were checked: {error}") from error

    def blank(self) -> Encoded:
        """An image without a text, of which nothing is learned."""
        image = self.encoder.image(Image.new("RGB", (56, 56)))
        tokens = image.grid[1] * image.grid[2] // self.encoder.processor.image_processor.merge_size**2
        pad = self.encoder.processor.tokenizer.convert_tokens_to_ids(self.encoder.processor.image_token)
        return Encoded([pad] * tokens, [IGNORED] * tokens, 0, [image])


def load_conversations(data: Data, encoder: PairEncoder, held_out: bool = False) -> tuple[Conversations, PairEncoder]:
    """The conversations that the configuration asks for, each encoded once before training to see that it can be.

    Records that cannot be used are counted, and listed in ``errors.jsonl`` in the cache. A later call with the same
    data and processor opens the same table.

    Returns:
        the conversations, and the encoder that finds their images.

    Raises:
        JobError: no data, a column or a subset that is not there, data other than the subset was cut from, or nothing
            left.
    """
    path, root = (data.eval_path, data.eval_image_root) if held_out else (data.path, data.image_root)
    columns = data.image_column, data.text_column, None, data.kind_column, data.question_column
    given = DataSpec(path or "", root, *columns)
    subset = None if held_out else data.subset
    spec, ids = selected_data(given, subset, "data.eval_path" if held_out else "data.path")
    settings = f"{data.question} {encoder.max_tokens} {encoder.processor.image_processor.to_json_string()}"
    what = [input_fingerprint(spec), vars(spec), file_fingerprint(ids) if ids else None, settings]
    folder = Path(data.cache_dir, hashlib.blake2b(repr(what).encode(), digest_size=8).hexdigest())
    layout = inspect(spec)
    encoder = PairEncoder(encoder.processor, image_root=layout.root, max_tokens=encoder.max_tokens)
    # Images that were missing or broken may be whole by now; the fingerprint is of the files of the data set alone.
    if not is_built(folder) or any("image" in kind for kind in open_table(folder)[1]["errors"]):
        kept = None if ids is None else {row: [number for number, _ in scores] for row, scores in kept_rows(ids)}
        _build(spec, layout, kept, folder, encoder, data)
    table, counts = open_table(folder)
    errors = ", ".join(f"{kind} {number}" for kind, number in sorted(counts["errors"].items()))
    failed = sum(counts["errors"].values())
    summary = (
        f"{len(table) + failed:,} records = {len(table):,} usable with {counts['conversations']:,} conversations"
        f" + {failed:,} errors" + (f" ({errors}; see {folder / ERRORS})" if errors else "")
    )
    if not len(table):
        raise JobError(f"nothing to {'evaluate' if held_out else 'train'} on: {summary}")
    return Conversations(table, layout.root, summary), encoder


def _build(
    spec: DataSpec, layout: Layout, kept: Mapping[int, list[int]] | None, folder: Path, encoder: PairEncoder, data: Data
) -> None:
    """Write the table of usable records (those of ``kept``, if given, with the answers of these numbers)."""
    errors: Counter[str] = Counter()
    conversations = 0

    def row_of(record: Record) -> dict[str, Any]:
        numbers = None if kept is None or record.turns else kept[record.row]
        chosen = record.captions if numbers is None else [record.texts[k] for k in numbers if k < len(record.texts)]
        return {
            "id": record.id,
            "kind": record.source,
            "images": [image_entry(image) for image in record.images],
            "turns": list(record.turns),
            "question": "" if record.turns else record.question or data.question,
            "answers": [] if record.turns else chosen,
        }

    def check(record: Record) -> None:
        if record.error is not None:
            raise record.error
        row = row_of(record)
        if not (row["turns"] or row["answers"]):
            raise RecordError("empty_text", "no text with a letter or digit")
        images = [encoder.image(image) for image in row["images"]]
        for answer in range(max(1, len(row["answers"]))):
            encode_conversation(encoder, row, answer, images)

    def items() -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
        nonlocal conversations
        wanted = (record for record in read_records(spec, layout=layout) if kept is None or record.row in kept)
        total = layout.files.count_all() if kept is None else len(kept)
        for record in tqdm(checked(wanted, check, max(1, data.num_workers)), "checking", total, unit=" records"):
            if isinstance(record, RecordError):
                errors[record.kind] += 1
                yield "", record
            else:
                row = row_of(record)
                conversations += max(1, len(row["answers"]))
                yield "", row

    build_table(folder, SCHEMA, items(), lambda: {"conversations": conversations, "errors": dict(errors)})
