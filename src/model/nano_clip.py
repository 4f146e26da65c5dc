"""The embedded CLIP's shape: OpenAI's architecture at a size that trains on two CPU cores."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

PAD, START, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
CONTEXT = 48  # tokens; captions of remote-sensing sets are seldom longer


def nano_clip(
    texts: Iterable[str],
    vocab_size: int = 3000,
    image_side: int = 112,
    width: int = 192,
    image_layers: int = 5,
    text_layers: int = 3,
) -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP of random weights, 4.4 million by default, and its processor with a tokeniser trained on ``texts``.

    Args:
        vocab_size: tokens, the 3 special ones included.
        image_side: pixels a side, a multiple of 16.
        width: of both towers and of their features, a multiple of 64.
        image_layers, text_layers: of the towers.
    """
    tower: dict[str, Any] = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    tower |= {"projection_dim": width, "hidden_act": "gelu"}
    tokenizer = _tokenizer(texts, vocab_size)
    # open_clip pools a text at its largest token id, transformers at the end token: here they are one
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), num_hidden_layers=text_layers, max_position_embeddings=CONTEXT, **tower, **ids
    )
    vision = CLIPVisionConfig(image_size=image_side, patch_size=16, num_hidden_layers=image_layers, **tower)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=width))
    images = CLIPImageProcessor(
        size={"shortest_edge": image_side}, crop_size={"height": image_side, "width": image_side}
    )
    return model, CLIPProcessor(images, tokenizer)


def _tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        special_tokens=[PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([START, END])
    ends = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{START} $A {END}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END, unk_token=END,
        model_max_length=CONTEXT, padding_side="right", clean_up_tokenization_spaces=False,
    )  # fmt: skip
