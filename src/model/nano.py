"""The embedded model's shape: Qwen2-VL's architecture and special tokens at a size that trains on two CPU cores."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

PAD, END = "<|endoftext|>", "<|im_end|>"
SPECIAL_TOKENS = (
    PAD,
    "<|im_start|>",
    END,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Same text as Qwen2-VL's own template for conversations of text and images, written for this project.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- else -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
# How Qwen2's tokeniser cuts text before byte-pair merging (contractions, words, single digits, punctuation, newlines).
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def nano_processor(texts: Iterable[str], vocab_size: int, image_side: int) -> Qwen2VLProcessor:
    """Train a byte-level BPE tokeniser on ``texts`` and return a whole Qwen2-VL processor around it.

    Args:
        vocab_size: tokens, the 14 special ones included.
        image_side: images are shrunk to at most ``image_side ** 2`` pixels; a multiple of 28.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in (PAD, END)],
        chat_template=CHAT_TEMPLATE,
        model_max_length=32768,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    # A little more than the square, or rounding errors would now and then shrink an image by one more token a side.
    size = {"shortest_edge": 56 * 56, "longest_edge": image_side**2 + image_side}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=fast,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )


def nano_config(processor: Qwen2VLProcessor) -> Qwen2VLConfig:
    """Return the configuration of the embedded score model: about 4.5 million weights with a vocabulary of 3,000."""
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(processor.tokenizer),
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "max_window_layers": 4,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": ids[PAD],
        "eos_token_id": ids[END],
        "pad_token_id": ids[PAD],
    }
    vision = {"depth": 5, "embed_dim": 160, "num_heads": 5, "mlp_ratio": 4, "hidden_size": 192}
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def backbone(model: PreTrainedModel) -> Qwen2VLForConditionalGeneration:
    """Return a score model without its head, as a Qwen2-VL with tied word embeddings; both share their weights.

    Its checkpoint is what ``Qwen/Qwen2-VL-2B-Instruct`` is in layout: the base of reward stages and of fine-tuning.
    """
    config = copy.deepcopy(model.config)
    for key in ("position_scheme", "ranked_candidate_num"):
        delattr(config, key)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = True
    whole = Qwen2VLForConditionalGeneration(config)
    whole.model = model.model
    whole.tie_weights()
    return whole


def prefer_fast_attention(model: PreTrainedModel) -> None:
    """Let a model that trains on CPU under bfloat16 autocast attend in float32, if there is no GPU.

    The backward pass of torch's CPU attention in bfloat16 takes four times as long as in float32 (116 against 27 ms for
    128 images of 64 patches); every other product gains from bfloat16.
    """
    if torch.cuda.is_available():
        return
    AttentionInterface.register("sdpa_float32", _sdpa_float32)
    AttentionMaskInterface.register("sdpa_float32", sdpa_mask)
    model.set_attn_implementation("sdpa_float32")


def _sdpa_float32(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    dtype, (batch, heads, length, size) = query.dtype, query.shape
    query, key, value = query.float(), key.float(), value.float()
    with torch.autocast(query.device.type, enabled=False):
        if length > 1 or heads == key.shape[1]:
            output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        else:  # one new token: its heads become queries of the keys that they share, which need not be repeated
            query = query.view(batch, key.shape[1], -1, size)
            output = scaled_dot_product_attention(query, key, value, attention_mask, scale=kwargs.get("scaling"))
            output = output.reshape(batch, 1, heads, size)
    return output.to(dtype), None
