"""The tokeniser of a Llama checkpoint from its sentencepiece model, for the tokenizers library.

sentencepiece puts a space before every text, and the published loaders tokenise what stands before and after an image
one by one. Here the chat template writes those spaces and the tokeniser adds none, so that what it makes of a text does
not depend on where the text is cut.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import AddedToken, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.tokenization_utils_base import generate_merges

from src.errors import JobError

IMAGE = "<image>"
_BPE, _CONTROL, _USER_DEFINED = 2, 3, 4  # of sentencepiece's model file


def llama_tokenizer(folder: Path, extra: Sequence[str] = (), begins: bool = True) -> LlamaTokenizer:
    """Read ``tokenizer.model``, and ``added_tokens.json`` where there is one.

    Args:
        extra: tokens to have behind all others; those that are there already stay where they are.
        begins: put ``<s>`` before a text that is encoded with special tokens.

    Raises:
        JobError: no such file, one that is damaged, or a kind of tokeniser that is none of Llama's.
    """
    file = folder / "tokenizer.model"
    try:
        proto = import_protobuf().ModelProto.FromString(file.read_bytes())
    except OSError as error:
        raise JobError(f"{folder} holds no tokenizer.model: {error}") from error
    except Exception as error:  # whatever this version of protobuf raises
        raise JobError(f"{file} is no sentencepiece model: {error}") from error
    rules, training = proto.normalizer_spec, proto.trainer_spec
    if training.model_type != _BPE or rules.precompiled_charsmap or rules.remove_extra_whitespaces:
        raise JobError(f"{file} is no tokeniser of Llama's kind (byte pairs, texts as they are)")
    pieces = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    tokenizer = LlamaTokenizer(
        vocab=pieces,
        merges=generate_merges(pieces),
        add_prefix_space=False,
        add_bos_token=begins,
        add_eos_token=False,
        pad_token="<unk>",  # noqa: S106  # as published
        padding_side="left",
    )
    marked = [piece for piece in proto.pieces if piece.type in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_tokens([_added(piece.piece, special=piece.type == _CONTROL) for piece in marked])
    more = _read_added(folder / "added_tokens.json")
    for token in [*sorted(more, key=more.__getitem__), *extra]:
        tokenizer.add_tokens([_added(token)])
        if more.get(token, number := tokenizer.convert_tokens_to_ids(token)) != number:
            raise JobError(
                f"{folder}: the added token {token} has the id {more[token]}, not {number}, the next free one"
            )
    return tokenizer


def add_image_token(tokenizer: PreTrainedTokenizerFast) -> int:
    """Give ``<image>``, which stands for image features, the id behind all others, and return it."""
    tokenizer.add_tokens([_added(IMAGE, special=True)])
    return len(tokenizer) - 1


def _added(token: str, special: bool = False) -> AddedToken:
    return AddedToken(token, normalized=False, special=special)


def _read_added(file: Path) -> dict[str, int]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
