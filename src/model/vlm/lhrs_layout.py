"""LHRS-Bot-Nova from its published layout: ``FINAL.pt``, the folder ``TextLoRA`` beside it, and Llama 3.

The adapter is merged into the text model on the way, weight by weight. A resampler that was saved before it had experts
gets equal ones.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, SiglipVisionConfig
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from src.errors import JobError
from src.model.vlm.lhrs import LhrsConfig, LhrsForConditionalGeneration, LhrsProcessor
from src.model.vlm.templates import LHRS, Compat, llama3_template
from src.model.vlm.tokenizer import add_image_token
from src.model.vlm.towers import bare_tower, tower_shape, tower_weights
from src.model.vlm.weights import Weight, Weights, refuse_other_weights, stored_weights, write_model

TOWER = "google/siglip-so400m-patch14-384"
CHECKPOINT = "FINAL.pt"
LORA = "TextLoRA"

_SHOWN, _POOLER = "rgb_ckpt.", "other_ckpt.rgb_pooler."
_LAST_LAYER = "encoder.layers.{}."
# The tower's pooling head and the noise of the gates in training play no part.
_UNUSED = re.compile(r"^head\.|\.gate\.weight_noise\.")
_EXPERT = re.compile(r"^(layers\.\d+\.mlp\.)calculator\.experts\.((?:weight|bias)_(?:up|down))\.(\d+)$")
_DENSE = re.compile(r"^(layers\.\d+\.mlp\.)c_(fc|proj)\.(weight|bias)$")
_ADAPTED = re.compile(r"^base_model\.model\.(.+)\.lora_([AB])\.weight$")


def convert_lhrs(
    source: Path,
    target: Path,
    text_base: Path | None,
    tower: Path | None = None,
    text_lora: Path | None = None,
    without_lora: bool = False,
    compat: Compat = "intended",
) -> None:
    """Fill ``target``, an empty folder, with the model, its processor and its chat template.

    Args:
        source: ``FINAL.pt``, or the folder that holds it.
        text_base: folder of the text model (Meta-Llama-3-8B-Instruct), with its tokeniser.
        tower: folder of the SigLIP tower. Needed for its weights if the checkpoint has none, and for its shape if it is
            not that of so400m-patch14-384.
        text_lora: folder of the adapter; None is ``TextLoRA`` beside the checkpoint.
        without_lora: convert the text model as it is, on purpose.
        compat: ``published`` leaves the newline behind an image out of prompts, as the published loader does.

    Raises:
        JobError: no adapter, and not on purpose; weights that are missing, unused or of another shape.
    """
    checkpoint = source / CHECKPOINT if source.is_dir() else source
    if text_base is None:
        raise JobError("LHRS-Bot-Nova needs the folder of its text model (Meta-Llama-3-8B-Instruct) as --text_base")
    lora = text_lora or checkpoint.parent / LORA
    if not without_lora and not (lora / "adapter_config.json").is_file():
        raise JobError(
            f"{lora} holds no adapter: without it this is not LHRS-Bot-Nova but its text model; "
            "give its folder as --text_lora, or say --without_lora"
        )
    stored = {name.removeprefix("model."): weight for name, weight in stored_weights(checkpoint).items()}
    shown = {name.removeprefix(_SHOWN): weight for name, weight in stored.items() if name.startswith(_SHOWN)}
    pooler = {name.removeprefix(_POOLER): weight for name, weight in stored.items() if name.startswith(_POOLER)}
    if strange := [name for name in stored if not name.startswith((_SHOWN, _POOLER))]:
        raise JobError(f"{checkpoint} holds weights of nothing known: {', '.join(strange[:8])}")

    tokenizer, text_config = _text_model(text_base)
    image_token = add_image_token(tokenizer)
    rows = max(image_token + 1, text_config.vocab_size)
    config = _config(tower_shape(TOWER, tower), text_config, rows, image_token, pooler)
    with torch.device("meta"):
        model = LhrsForConditionalGeneration(config)

    if not shown and tower is None:
        raise JobError(f"{checkpoint} holds no weights of the vision tower; give its folder as --tower")
    shown = bare_tower(shown) if shown else _without_layer(tower_weights(tower), config)  # type: ignore[arg-type]
    weights = {f"model.vision_tower.{name}": weight for name, weight in shown.items() if not _UNUSED.search(name)}
    weights |= {f"model.multi_modal_projector.{name}": weight for name, weight in _resampler(pooler, config).items()}
    text = stored_weights(text_base)
    if not without_lora:
        text = _merged(text, lora)
    for name, weight in text.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            weight = weight.changed(_extended(rows), (rows, weight.shape[1]))  # noqa: PLW2901
        weights[re.sub(r"^model\.", "model.language_model.", name)] = weight
    refuse_other_weights(weights, model, checkpoint)

    side = config.vision_config.image_size
    LhrsProcessor(
        SiglipImageProcessorPil(size={"height": side, "width": side}),
        tokenizer,
        image_seq_length=config.image_seq_length,
        chat_template=llama3_template(LHRS, compat),
    ).save_pretrained(target)
    ends = text_config.eos_token_id if isinstance(text_config.eos_token_id, list) else [text_config.eos_token_id]
    ends = sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>"), *ends} - {None})
    write_model(model, weights, tokenizer, ends, image_token, compat, target)


def _text_model(text_base: Path) -> tuple[Any, LlamaConfig]:
    """Tokeniser and configuration."""
    try:
        config, tokenizer = AutoConfig.from_pretrained(text_base), AutoTokenizer.from_pretrained(text_base)
    except (OSError, ValueError) as error:
        raise JobError(f"{text_base} holds no text model with its tokeniser: {error}") from error
    if not isinstance(config, LlamaConfig):
        raise JobError(f"{text_base} is no Llama model but a {config.model_type}")
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.eos_token  # as published
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer, config


def _config(shape: dict[str, Any], text: LlamaConfig, rows: int, image_token: int, pooler: Weights) -> Any:
    if shape["model_type"] != "siglip_vision_model":
        raise JobError(f"the vision tower is a {shape['model_type']}, not SigLIP's")
    whole = shape["num_hidden_layers"]
    shape = {key: value for key, value in shape.items() if key != "model_type"}
    shape |= {"num_hidden_layers": whole - 1, "vision_use_head": False}
    text.vocab_size = rows
    gate = next((weight for name, weight in pooler.items() if name.endswith("gate.gate_network.0.weight")), None)
    layers = {name.split(".")[1] for name in pooler if name.startswith("layers.")}
    config = LhrsConfig(
        vision_config=SiglipVisionConfig(**shape),
        text_config=text,
        image_token_index=image_token,
        vision_feature_layer=[whole // 3, 2 * (whole // 3), whole - 1],
        vision_feature_select_strategy="full",
        resampler_layers=len(layers),
        experts=gate.shape[0] if gate else LhrsConfig.experts,
        tie_word_embeddings=text.tie_word_embeddings,
        dtype=text.dtype,
    )
    config.image_seq_length = sum(config.query_groups)
    return config


def _without_layer(tower: Weights, config: Any) -> Weights:
    """The stock tower without its last layer, which the model does not use."""
    last = _LAST_LAYER.format(config.vision_config.num_hidden_layers)
    return {name: weight for name, weight in tower.items() if not name.startswith(last)}


def _resampler(pooler: Weights, config: Any) -> Weights:
    """The resampler's weights with all experts of a layer in one, made of the plain layer where there are none."""
    plain: Weights = {}
    parts: dict[str, dict[int, Weight]] = {}
    for name, weight in pooler.items():
        if _UNUSED.search(name):
            continue
        if found := _EXPERT.match(name):
            parts.setdefault(found[1] + found[2], {})[int(found[3])] = weight
        elif found := _DENSE.match(name):
            way, kind = {"fc": "up", "proj": "down"}[found[2]], found[3]
            turned = weight.changed(lambda w: w.T, weight.shape[::-1]) if (way, kind) == ("down", "weight") else weight
            parts[f"{found[1]}{kind}_{way}"] = dict.fromkeys(range(config.experts), turned)
        else:
            plain[name.replace(".gate.gate_network.", ".gate.")] = weight
    for name in [name for name in parts if name.endswith("weight_up")]:
        layer = name.removesuffix("weight_up")
        if f"{layer}gate.0.weight" not in plain:  # of equal experts it does not matter which are taken
            width, experts, like = parts[name][0].shape[1], config.experts, parts[name][0]
            plain[f"{layer}gate.0.weight"] = like.changed(_zeros(experts, width), (experts, width))
            plain[f"{layer}gate.2.weight"] = like.changed(_zeros(experts, experts), (experts, experts))
    stacked = {name: _stack([held[k] for k in sorted(held)]) for name, held in parts.items()}
    return plain | stacked


def _zeros(*shape: int) -> Callable[[Tensor], Tensor]:
    return lambda like: like.new_zeros(shape)


def _stack(weights: list[Weight]) -> Weight:
    return Weight((len(weights), *weights[0].shape), lambda: torch.stack([weight.read() for weight in weights]))


def _extended(rows: int) -> Callable[[Tensor], Tensor]:
    return lambda table: torch.cat([table, table.new_zeros(rows - len(table), table.shape[1])])


def _merged(text: Weights, lora: Path) -> Weights:
    """The text model with the adapter's products added.

    Raises:
        JobError: an adapter of another kind, or one for weights that the text model does not have.
    """
    try:
        settings = json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{lora} holds no adapter_config.json that can be read: {error}") from error
    odd = [key for key in ("use_dora", "fan_in_fan_out", "modules_to_save", "alpha_pattern") if settings.get(key)]
    if settings.get("bias", "none") != "none" or odd or settings.get("peft_type") != "LORA":
        raise JobError(f"{lora} is no plain LoRA adapter: {', '.join(odd) or 'see peft_type and bias'}")
    found: dict[str, dict[str, Weight]] = {}
    strange = []
    for name, weight in _adapter_weights(lora).items():
        match = _ADAPTED.match(name)
        if match and f"{match[1]}.weight" in text:
            found.setdefault(f"{match[1]}.weight", {})[match[2]] = weight
        else:
            strange.append(name)
    strange += [name for name, pair in found.items() if set(pair) != {"A", "B"}]
    if strange:
        raise JobError(f"{lora} holds weights for nothing in the text model: {', '.join(sorted(strange)[:8])}")

    def merge(pair: dict[str, Weight]) -> Callable[[Tensor], Tensor]:
        rank = pair["A"].shape[0]
        scale = settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)

        def merged(base: Tensor) -> Tensor:
            product = pair["B"].read().float() @ pair["A"].read().float()
            return (base.float() + scale * product).to(base.dtype)

        return merged

    return text | {name: text[name].changed(merge(pair)) for name, pair in found.items()}


def _adapter_weights(lora: Path) -> Weights:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (lora / name).is_file():
            return stored_weights(lora / name)
    raise JobError(f"{lora} holds no weights of an adapter (adapter_model.safetensors or .bin)")
