"""CLIP weights between open_clip's plain ViT layout and transformers' ``CLIPModel``, both ways, bit for bit.

>>> from src.model.clip import load_clip
>>> model, processor = to_transformers(load_clip("RemoteCLIP-ViT-B-32.pt", device="cpu"))
>>> to_open_clip(model, processor, "remote_clip_again")        # for load_clip, or open_clip's ``local-dir:``

For the same pixels and tokens both libraries give the same features (within 1e-5). Two things before that differ:

* Pixels. open_clip resizes with Pillow, transformers (as loaded here) with torchvision, which differs by a grey level
  here and there; and where the margin to be cropped is odd, the two crops may lie one pixel apart.
* Texts. open_clip undoes HTML escapes and broken encodings (``&amp;``) first; transformers does not.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from src.errors import JobError
from src.model.checkpoint import new_folder
from src.model.clip import OPEN_CLIP_CONFIG, OpenClip
from src.model.clip_configs import (
    image_processor,
    is_openai_vocabulary,
    open_clip_config,
    preprocess_config,
    refuse_other_architectures,
    transformers_config,
    transformers_tokenizer,
)

OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"

# (open_clip, transformers, transposed); blocks, whose q, k and v are one matrix in open_clip, are treated apart.
_NAMES = (
    ("visual.class_embedding", "vision_model.embeddings.class_embedding", False),
    ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight", False),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight", False),
    *((f"visual.ln_pre.{k}", f"vision_model.pre_layrnorm.{k}", False) for k in ("weight", "bias")),
    *((f"visual.ln_post.{k}", f"vision_model.post_layernorm.{k}", False) for k in ("weight", "bias")),
    ("visual.proj", "visual_projection.weight", True),
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight", False),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight", False),
    *((f"ln_final.{k}", f"text_model.final_layer_norm.{k}", False) for k in ("weight", "bias")),
    ("text_projection", "text_projection.weight", True),
    ("logit_scale", "logit_scale", False),
)
_TOWERS = (("visual.transformer.resblocks", "vision_model"), ("transformer.resblocks", "text_model"))
_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_QKV = ("q_proj", "k_proj", "v_proj")


def to_transformers(clip: OpenClip) -> tuple[CLIPModel, CLIPProcessor]:
    """A model that was loaded by open_clip, with the same weights, tokeniser and preprocessing in transformers.

    Raises:
        JobError: another architecture than a plain ViT CLIP, or a preprocessing that CLIPImageProcessor lacks.
    """
    state = {key: value.detach() for key, value in clip.model.state_dict().items()}
    tokenizer = transformers_tokenizer(clip.tokenizer, clip.config["text_cfg"].get("context_length", 77))
    model = model_of_weights(state, clip.config, tokenizer)
    return model, CLIPProcessor(image_processor(clip.model.visual.preprocess_cfg), tokenizer)


def model_of_weights(state: Mapping[str, Tensor], config: Mapping[str, Any], tokenizer: Any = None) -> CLIPModel:
    """A ``CLIPModel`` of weights in open_clip's layout; all sizes but the heads come from their shapes.

    Args:
        state: as ``model.state_dict()`` of open_clip's CLIP, or of its CustomTextCLIP (``text.`` before text weights).
        config: the ``model_cfg`` of open_clip.
        tokenizer: of transformers; names the ids of begin, end and padding.

    Raises:
        JobError: weights or settings that no CLIPModel has, by name, or missing weights.
    """
    refuse_other_architectures(config)
    state = {re.sub(r"^text\.", "", key): value for key, value in state.items() if not key.endswith("attn_mask")}
    try:
        weights = _transformers_weights(state)
    except KeyError as error:
        raise JobError(f"no plain ViT CLIP of open_clip: the weight {error} is missing") from error
    if surplus := sorted(state):
        raise JobError(f"no plain ViT CLIP of open_clip: a CLIPModel has no place for {', '.join(surplus[:8])}")
    model = CLIPModel(transformers_config(weights, config, tokenizer))
    model.load_state_dict(weights, strict=True)
    return model.eval()


def open_clip_weights(model: CLIPModel) -> dict[str, Tensor]:
    """The weights of a ``CLIPModel`` in open_clip's layout."""
    given = model.state_dict()
    weights = {ours: (given[theirs].T if turned else given[theirs]).contiguous() for ours, theirs, turned in _NAMES}
    for ours, tower in _TOWERS:
        for n in range(getattr(model, tower).config.num_hidden_layers):
            block, theirs = f"{ours}.{n}", f"{tower}.encoder.layers.{n}"
            for kind in ("weight", "bias"):
                parts = [given[f"{theirs}.self_attn.{part}.{kind}"] for part in _QKV]
                weights[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
                weights |= {f"{block}.{a}.{kind}": given[f"{theirs}.{b}.{kind}"] for a, b in _BLOCK.items()}
    return weights


def to_open_clip(model: CLIPModel, processor: Any, folder: str | Path) -> Path:
    """Write a ``CLIPModel`` as a folder that open_clip loads by ``local-dir:<folder>``, tokeniser and all.

    Args:
        processor: its image processor and tokeniser (a ``CLIPProcessor``).
        folder: must be new or empty.

    Raises:
        JobError: no CLIPModel, a setting that open_clip does not have, or a folder that holds something.
    """
    if not isinstance(model, CLIPModel):
        raise JobError(f"a {type(model).__name__} is no CLIPModel; only that has the layout of open_clip's CLIP")
    standard = is_openai_vocabulary(processor.tokenizer)
    vision: Any = model.config.vision_config
    config = {
        "model_cfg": open_clip_config(model.config, standard),
        "preprocess_cfg": preprocess_config(processor.image_processor, vision.image_size),
    }
    with new_folder(folder) as partial:
        save_file(open_clip_weights(model), partial / OPEN_CLIP_WEIGHTS, metadata={"format": "pt"})
        if not standard:
            processor.tokenizer.save_pretrained(partial)
        (partial / OPEN_CLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return Path(folder)


def _transformers_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes what it uses out of ``state``."""
    weights = {theirs: state.pop(ours) for ours, theirs, _ in _NAMES}
    weights |= {theirs: weights[theirs].T.contiguous() for _, theirs, turned in _NAMES if turned}
    weights["logit_scale"] = weights["logit_scale"].reshape(())
    for ours, tower in _TOWERS:
        n = 0
        while f"{ours}.{n}.ln_1.weight" in state:
            block, theirs = f"{ours}.{n}", f"{tower}.encoder.layers.{n}"
            for kind in ("weight", "bias"):
                parts = state.pop(f"{block}.attn.in_proj_{kind}").chunk(3)
                weights |= {f"{theirs}.self_attn.{name}.{kind}": p for name, p in zip(_QKV, parts, strict=True)}
                weights |= {f"{theirs}.{b}.{kind}": state.pop(f"{block}.{a}.{kind}") for a, b in _BLOCK.items()}
            n += 1
    return weights
