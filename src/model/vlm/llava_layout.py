"""GeoChat, SkySenseGPT and VHM, which derive from LLaVA 1.5, as folders that transformers loads as LLaVA.

What the published loaders do in code the folder says in its files: the image's side and padding in the image processor,
the spaces and the ``<s>`` of a prompt in the chat template, the feature layers in the configuration. Weights are
renamed, and changed in three places: the tower's table of positions is widened for images of 504 px, the vocabulary
gets one row more, for the token that stands for image features, and a projector of one layer gets a second one that
does nothing.
"""

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from src.errors import JobError
from src.model.vlm.templates import LLAVA_V1, VICUNA_V1, Compat, vicuna_template
from src.model.vlm.tokenizer import add_image_token, llama_tokenizer
from src.model.vlm.towers import bare_tower, tower_shape, tower_weights, with_positions
from src.model.vlm.weights import Weight, Weights, refuse_other_weights, stored_weights, write_model


@dataclass(frozen=True)
class _Family:
    """What a family's loader does that its configuration does not say.

    Attributes:
        side: of the image in pixels; None is the tower's own.
        padded: images become squares by bars of the mean colour; if not, the middle square is cut out.
        system: what opens a conversation.
    """

    side: int | None
    padded: bool
    system: str


FAMILIES = {"geochat": _Family(504, True, LLAVA_V1), "vhm": _Family(None, False, VICUNA_V1)}
_TEXT_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "max_position_embeddings", "initializer_range"),
    *("attention_bias", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
)
_NEEDED = (*_TEXT_KEYS[:4], "mm_vision_tower", "mm_vision_select_layer")
_TOWER = "model.vision_tower."
_NAMES = (
    (re.compile(r"^model\.vision_tower\.vision_tower\."), _TOWER),
    (re.compile(r"^model\.mm_projector\.(?:0\.)?(?=weight|bias)"), "model.multi_modal_projector.linear_1."),
    (re.compile(r"^model\.mm_projector\.2\."), "model.multi_modal_projector.linear_2."),
    (re.compile(r"^model\.(?=embed_tokens\.|layers\.|norm\.)"), "model.language_model."),
)
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$")
_EMBEDDINGS = ("model.language_model.embed_tokens.weight", "lm_head.weight")


def convert_llava(source: Path, target: Path, tower: Path | None = None, compat: Compat = "intended") -> None:
    """Fill ``target``, an empty folder, with the model, its processor and its chat template.

    Args:
        source: checkpoint in the published layout of GeoChat, SkySenseGPT or VHM.
        tower: folder of the vision tower that the checkpoint names. Needed for its weights if the checkpoint has none
            or ``compat`` is ``published``, and for its shape if it is none of ``KNOWN_TOWERS``.
        compat: ``published`` takes the stock tower's weights in any case and begins prompts without ``<s>``, as the
            published loaders do.

    Raises:
        JobError: not such a checkpoint; weights that are missing, unused or of another shape.
    """
    given = read_config(source)
    family = FAMILIES[given["model_type"]]
    vision = tower_shape(given["mm_vision_tower"], tower)
    tokenizer = llama_tokenizer(source, _image_marks(given), begins=compat == "intended")
    words = len(tokenizer)
    image_token = add_image_token(tokenizer)
    config = _config(given, vision | {"image_size": family.side or vision["image_size"]}, image_token)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)

    weights = _renamed(stored_weights(source))
    weights = _with_tower(weights, tower, compat, model.model.vision_tower.embeddings.num_positions)
    weights = _with_projector(weights, given, config)
    for name in _EMBEDDINGS:
        if name in weights:
            weights[name] = weights[name].changed(partial(_with_rows, words=words), (words + 1, weights[name].shape[1]))
    refuse_other_weights(weights, model, source)

    side = config.vision_config.image_size
    image_processor = LlavaImageProcessorPil(
        do_pad=family.padded,
        size={"height": side, "width": side} if family.padded else {"shortest_edge": side},
        crop_size={"height": side, "width": side},
        do_center_crop=not family.padded,
    )
    LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=vicuna_template(family.system, compat, bool(given.get("mm_use_im_start_end"))),
    ).save_pretrained(target)
    write_model(model, weights, tokenizer, tokenizer.eos_token_id, image_token, compat, target)


def read_config(source: Path) -> dict[str, Any]:
    """The configuration of a published checkpoint.

    Raises:
        JobError: none, another model type, or keys that are missing.
    """
    file = source / "config.json"
    try:
        given: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{source} holds no config.json that can be read: {error}") from error
    if (kind := given.get("model_type")) not in FAMILIES:
        raise JobError(f"{file}: model_type {kind!r} is not converted here; known: {', '.join(FAMILIES)}")
    if missing := [key for key in _NEEDED if key not in given]:
        raise JobError(f"{file} lacks {', '.join(missing)}")
    return given


def _image_marks(given: dict[str, Any]) -> list[str]:
    """Tokens that the published loaders add; one of them also where the configuration does not speak of it."""
    marks = ["<im_patch>"] if given.get("mm_use_im_patch_token", True) else []
    return [*marks, "<im_start>", "<im_end>"] if given.get("mm_use_im_start_end") else marks


def _config(given: dict[str, Any], vision: dict[str, Any], image_token: int) -> Any:
    select = given.get("mm_vision_select_feature", "patch")
    if select not in ("patch", "cls_patch"):
        raise JobError(f"mm_vision_select_feature {select!r} is not known; known: patch, cls_patch")
    if vision["model_type"] != "clip_vision_model":
        raise JobError(f"the vision tower is a {vision['model_type']}, and only CLIP's is converted here")
    text = LlamaConfig(
        vocab_size=image_token + 1, **{key: given[key] for key in _TEXT_KEYS if given.get(key) is not None}
    )
    grid = vision["image_size"] // vision["patch_size"]
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**{key: value for key, value in vision.items() if key != "model_type"}),
        text_config=text,
        image_token_index=image_token,
        image_seq_length=grid * grid + (select == "cls_patch"),
        vision_feature_layer=given["mm_vision_select_layer"],
        vision_feature_select_strategy="default" if select == "patch" else "full",
        projector_hidden_act="gelu" if _projector_layers(given) == 2 else "linear",
        tie_word_embeddings=bool(given.get("tie_word_embeddings", False)),
        dtype=given.get("torch_dtype"),
    )


def _projector_layers(given: dict[str, Any]) -> int:
    kind = given.get("mm_projector_type", "linear")
    found = re.fullmatch(r"mlp([12])x_gelu", kind)
    if kind != "linear" and not found:
        raise JobError(f"mm_projector_type {kind!r} is not converted here; known: linear, mlp1x_gelu, mlp2x_gelu")
    return int(found[1]) if found else 1


def _renamed(stored: Weights) -> Weights:
    named: Weights = {}
    for name, weight in stored.items():
        if _COMPUTED.search(name):
            continue
        for pattern, ours in _NAMES:
            name = pattern.sub(ours, name)  # noqa: PLW2901
        named[name] = weight
    return named


def _with_tower(weights: Weights, folder: Path | None, compat: Compat, positions: int) -> Weights:
    own = {name.removeprefix(_TOWER): weight for name, weight in weights.items() if name.startswith(_TOWER)}
    if own and compat == "intended":
        shown = bare_tower(own)
    elif folder is not None:
        shown = tower_weights(folder)
    else:
        why = "compat published takes the stock ones" if own else "the checkpoint has none"
        raise JobError(f"weights of the vision tower are needed ({why}); give its folder as --tower")
    rest = {name: weight for name, weight in weights.items() if not name.startswith(_TOWER)}
    return rest | {_TOWER + name: weight for name, weight in with_positions(shown, positions).items()}


def _with_projector(weights: Weights, given: dict[str, Any], config: Any) -> Weights:
    if _projector_layers(given) == 2:
        return weights
    width = config.text_config.hidden_size
    second = "model.multi_modal_projector.linear_2."
    like = weights.get("model.multi_modal_projector.linear_1.bias")

    def filled(tensor: Tensor) -> Tensor:
        return tensor if like is None else tensor.to(like.read().dtype)

    return weights | {
        second + "weight": Weight((width, width), lambda: filled(torch.eye(width))),
        second + "bias": Weight((width,), lambda: filled(torch.zeros(width))),
    }


def _with_rows(table: Tensor, words: int) -> Tensor:
    """A row for each word, new ones as the mean of all, and one of zeros, which an image's features replace."""
    more = table.float().mean(0).to(table.dtype).expand(max(0, words - len(table)), -1)
    return torch.cat([table[:words], more, table.new_zeros(1, table.shape[1])])
