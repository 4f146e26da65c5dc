"""What goes with CLIP weights, in the terms of either library: sizes, pooling, preprocessing and tokeniser.

open_clip pools a text at the greatest token id, or at ``eos_id``; transformers at ``eos_token_id``, or where that is 2,
at the greatest id. Each is written as what does the same in the other library.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTokenizer
from transformers.image_utils import PILImageResampling

from src.errors import JobError

START, END = "<|startoftext|>", "<|endoftext|>"

_EPS = 1e-5  # of layer norms, in both libraries unless told otherwise
_LEGACY_EOS = 2  # stands for "the greatest id" in transformers

# What of open_clip's configuration a CLIPModel can express, or does not touch what is computed.
_VISION_KEYS = {
    "layers",
    "width",
    "head_width",
    "mlp_ratio",
    "patch_size",
    "image_size",
    "patch_dropout",
    "norm_kwargs",
}
_TEXT_KEYS = {
    "context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_kwargs", "width", "heads", "layers", "mlp_ratio",
    "pad_id", "eos_id", "pool_type", "norm_kwargs",
}  # fmt: skip
_TOP_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale"}


def transformers_config(weights: Mapping[str, Tensor], config: Mapping[str, Any], tokenizer: Any) -> CLIPConfig:
    """The configuration of weights in transformers' layout, whose heads and pooling an open_clip ``model_cfg`` says."""
    vision_cfg, text_cfg = config["vision_cfg"], config["text_cfg"]
    act = "quick_gelu" if config.get("quick_gelu") else "gelu"
    projection = weights["text_projection.weight"].shape[0]
    patch = weights["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    grid = math.isqrt(len(weights["vision_model.embeddings.position_embedding.weight"]) - 1)
    vocabulary, width = weights["text_model.embeddings.token_embedding.weight"].shape

    def tower(name: str, width: int, cfg: Mapping[str, Any]) -> dict[str, Any]:
        layers = sum(key.startswith(f"{name}.") and key.endswith(".mlp.fc1.weight") for key in weights)
        return {
            "hidden_size": width,
            "intermediate_size": len(weights[f"{name}.encoder.layers.0.mlp.fc1.weight"]),
            "num_hidden_layers": layers,
            "projection_dim": projection,
            "hidden_act": act,
            "layer_norm_eps": (cfg.get("norm_kwargs") or {}).get("eps", _EPS),
        }

    vision_width = len(weights["vision_model.embeddings.class_embedding"])
    vision = tower("vision_model", vision_width, vision_cfg) | {
        "num_attention_heads": vision_width // vision_cfg.get("head_width", 64),
        "patch_size": patch,
        "image_size": grid * patch,
    }
    text = tower("text_model", width, text_cfg) | {
        "num_attention_heads": text_cfg.get("heads", 8),
        "vocab_size": vocabulary,
        "max_position_embeddings": len(weights["text_model.embeddings.position_embedding.weight"]),
        "eos_token_id": _transformers_eos(text_cfg, vocabulary, tokenizer),
        "bos_token_id": getattr(tokenizer, "bos_token_id", None),
        "pad_token_id": getattr(tokenizer, "pad_token_id", None),
    }
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=projection)


def _transformers_eos(text_cfg: Mapping[str, Any], vocabulary: int, tokenizer: Any) -> int:
    """The ``eos_token_id`` with which transformers pools where open_clip does."""
    if text_cfg.get("pool_type", "argmax") == "argmax":
        # the greatest id is met first where it is the end: the same place, said in the way that is not legacy
        ends = vocabulary - 1 == getattr(tokenizer, "eos_token_id", None)
        return vocabulary - 1 if ends else _LEGACY_EOS
    eos = text_cfg.get("eos_id", 2)
    if eos == _LEGACY_EOS:
        raise JobError("open_clip pools at the token 2, which transformers takes to mean the greatest token")
    return eos


def open_clip_config(config: CLIPConfig, standard: bool) -> dict[str, Any]:
    """open_clip's ``model_cfg``; ``standard``: the tokeniser is the one that open_clip has built in.

    Raises:
        JobError: a setting that open_clip does not have.
    """
    vision: Any = config.vision_config
    text: Any = config.text_config
    if vision.hidden_act != text.hidden_act or vision.hidden_act not in ("gelu", "quick_gelu"):
        raise JobError(f"open_clip has gelu or quick_gelu in both towers, not {vision.hidden_act}, {text.hidden_act}")
    for size in (vision.image_size, vision.patch_size):
        if not isinstance(size, int):
            raise JobError(f"images and patches must be square, not {size}")
    eos = text.eos_token_id
    if not isinstance(eos, int):
        raise JobError(f"the model's eos_token_id is {eos}; it must be one token")
    greatest = eos in (_LEGACY_EOS, text.vocab_size - 1)
    text_cfg = {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "heads": text.num_attention_heads,
        **_tower_config(text),
        **({} if greatest else {"pool_type": "eos", "eos_id": eos}),
        # any name will do: of a local folder, open_clip loads the tokeniser that lies in it
        **({} if standard else {"hf_tokenizer_name": "tokenizer"}),
    }
    vision_cfg = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "head_width": vision.hidden_size // vision.num_attention_heads,
        **_tower_config(vision),
    }
    quick = vision.hidden_act == "quick_gelu"
    return {"embed_dim": config.projection_dim, "quick_gelu": quick, "vision_cfg": vision_cfg, "text_cfg": text_cfg}


def _tower_config(config: Any) -> dict[str, Any]:
    ratio = config.intermediate_size / config.hidden_size
    if int(config.hidden_size * ratio) != config.intermediate_size:
        ratio = math.nextafter(ratio, math.inf)  # open_clip rounds the product down
    found = {"width": config.hidden_size, "layers": config.num_hidden_layers, "mlp_ratio": ratio}
    return found if config.layer_norm_eps == _EPS else found | {"norm_kwargs": {"eps": config.layer_norm_eps}}


def refuse_other_architectures(config: Mapping[str, Any]) -> None:
    """Raise JobError for an open_clip ``model_cfg`` of more than a plain ViT CLIP, naming the keys."""
    odd = [key for key in config if key not in _TOP_KEYS]
    for name, known in (("vision_cfg", _VISION_KEYS), ("text_cfg", _TEXT_KEYS)):
        given = config[name]
        odd += [f"{name}.{key}" for key, value in given.items() if key not in known and value]
        if set(given.get("norm_kwargs") or {}) - {"eps"}:
            odd.append(f"{name}.norm_kwargs")
    if config["text_cfg"].get("pool_type", "argmax") not in ("argmax", "eos"):
        odd.append("text_cfg.pool_type")
    if odd:
        raise JobError(f"no plain ViT CLIP of open_clip: a CLIPModel has no counterpart of {', '.join(odd)}")


def image_processor(config: Mapping[str, Any]) -> CLIPImageProcessor:
    """The image processor of an open_clip ``preprocess_cfg``. Raises JobError where there is none."""
    side = config["size"] if isinstance(config["size"], int) else config["size"][0]
    square = {"height": side, "width": side}
    if isinstance(config["size"], list | tuple) and len(set(config["size"])) > 1:
        raise JobError(f"images must be square, not {config['size']}")
    if config["resize_mode"] == "longest":
        raise JobError("open_clip pads images of this model to a square; CLIPImageProcessor cannot")
    squash = config["resize_mode"] == "squash"
    return CLIPImageProcessor(
        size=square if squash else {"shortest_edge": side},
        do_center_crop=not squash,
        crop_size=square,
        resample=PILImageResampling.BILINEAR if config["interpolation"] == "bilinear" else PILImageResampling.BICUBIC,
        image_mean=list(config["mean"]),
        image_std=list(config["std"]),
    )


def preprocess_config(processor: Any, side: int) -> dict[str, Any]:
    """open_clip's ``preprocess_cfg`` of an image processor, for ``side`` pixels. JobError if there is none."""
    size, crop = dict(processor.size), dict(processor.crop_size or {})
    names = {PILImageResampling.BICUBIC: "bicubic", PILImageResampling.BILINEAR: "bilinear"}
    square = {"height": side, "width": side}
    shortest = size.get("shortest_edge") == side and processor.do_center_crop and crop == square
    squash = {key: size.get(key) for key in square} == square and (not processor.do_center_crop or crop == square)
    usual = processor.do_resize and processor.do_rescale and processor.do_normalize
    if not (shortest or squash) or not usual or processor.resample not in names:
        raise JobError(
            f"open_clip resizes (bicubic or bilinear) to {side} px, crops the middle and normalises; the image "
            f"processor does otherwise: size {size}, crop {crop}, resample {processor.resample}"
        )
    return {
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "interpolation": names[processor.resample],
        "resize_mode": "shortest" if shortest else "squash",
    }


def transformers_tokenizer(tokenizer: Any, context: int) -> Any:
    """The tokeniser of transformers that open_clip wraps, or one with the vocabulary of open_clip's own."""
    if hasattr(tokenizer, "tokenizer"):
        return tokenizer.tokenizer
    vocabulary, merges = _openai_vocabulary(tokenizer)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context)


def _openai_vocabulary(tokenizer: Any) -> tuple[dict[str, int], Any]:
    """Vocabulary and merges of open_clip's own tokeniser, its two special tokens named as in transformers."""
    if not {"encoder", "bpe_ranks"} <= vars(tokenizer).keys():
        raise JobError(f"transformers has no counterpart of the tokeniser {type(tokenizer).__name__}")
    renamed = {"<start_of_text>": START, "<end_of_text>": END}
    return {renamed.get(token, token): n for token, n in tokenizer.encoder.items()}, list(tokenizer.bpe_ranks)


def is_openai_vocabulary(tokenizer: Any) -> bool:
    """Whether open_clip has this tokeniser built in."""
    from open_clip.tokenizer import SimpleTokenizer

    return isinstance(tokenizer, CLIPTokenizer) and tokenizer.get_vocab() == _openai_vocabulary(SimpleTokenizer())[0]
