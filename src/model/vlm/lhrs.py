"""LHRS-Bot-Nova: a SigLIP tower, a resampler of its early, middle and last features, and Llama 3.

The model and its processor are registered with transformers when this module is imported, so that the Auto classes load
what ``python_script/convert_checkpoint.py`` writes.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

GROUPS = (112, 96, 64)  # queries to the early, the middle and the last features
QUERIES = sum(GROUPS)


class LhrsConfig(LlavaConfig):
    """A LLaVA configuration whose ``vision_feature_layer`` lists a layer for each group of queries.

    Attributes:
        query_groups: how many queries go to each of those layers; their sum is ``image_seq_length``.
        resampler_layers: blocks of cross-attention and experts.
        resampler_heads: of the attention.
        experts: linear experts in a block.
        experts_used: how many of them a token goes through.
    """

    model_type = "lhrs"

    query_groups: list[int] | tuple[int, ...] = GROUPS
    resampler_layers: int = 6
    resampler_heads: int = 8
    experts: int = 4
    experts_used: int = 2


class Experts(nn.Module):
    """For each token the few experts with the greatest gates, weighted by the softmax of these; each is linear."""

    def __init__(self, width: int, experts: int, used: int):
        super().__init__()
        self.used = used
        first, last = nn.Linear(width, experts, bias=False), nn.Linear(experts, experts, bias=False)
        self.gate = nn.Sequential(first, nn.Tanh(), last)
        self.weight_up = nn.Parameter(torch.empty(experts, 4 * width, width))
        self.bias_up = nn.Parameter(torch.empty(experts, 4 * width))
        self.weight_down = nn.Parameter(torch.empty(experts, 4 * width, width))
        self.bias_down = nn.Parameter(torch.empty(experts, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., width)`` to the same shape."""
        flat = tokens.flatten(0, -2)
        gates, chosen = self.gate(flat).topk(self.used, dim=-1)
        shares = gates.softmax(-1)
        out = torch.zeros_like(flat)
        for expert in range(len(self.weight_up)):
            rows, place = (chosen == expert).nonzero(as_tuple=True)
            up = flat[rows] @ self.weight_up[expert].T + self.bias_up[expert]
            down = up @ self.weight_down[expert] + self.bias_down[expert]
            out.index_add_(0, rows, down * shares[rows, place, None])
        return out.view_as(tokens)


class ResamplerLayer(nn.Module):
    """Queries look at the features, then go through experts."""

    def __init__(self, config: LhrsConfig, width: int):
        super().__init__()
        self.ln_1, self.ln_1_kv, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, config.resampler_heads, batch_first=True)
        self.mlp = Experts(width, config.experts, config.experts_used)

    def forward(self, queries: Tensor, features: Tensor, positions: Tensor) -> Tensor:
        """Places are added to the keys, not to the values."""
        keys, values = self.ln_1_kv(features + positions), self.ln_1_kv(features)
        queries = queries + self.attn(self.ln_1(queries), keys, values, need_weights=False)[0]
        return queries + self.mlp(self.ln_2(queries))


class Resampler(nn.Module):
    """Image features of several layers to a fixed number of tokens of the text model's width."""

    def __init__(self, config: LhrsConfig):
        super().__init__()
        vision, text = cast("Any", config.vision_config), cast("Any", config.text_config)
        width = vision.hidden_size
        self.groups = list(config.query_groups)
        self.query = nn.Parameter(torch.empty(1, sum(self.groups), width))
        self.layernorm_query, self.layernorm_kv = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(ResamplerLayer(config, width) for _ in range(config.resampler_layers))
        self.layernorm_post = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, text.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(images, side^2, layers * width)``, a layer for each group, to ``(images, queries, text)``."""
        states = features.chunk(len(self.groups), dim=-1)
        side, width = math.isqrt(features.shape[1]), states[0].shape[2]
        places = sine_positions(side, width, features.device).to(features.dtype)
        seen = []
        for state, query in zip(states, self.query.split(self.groups, 1), strict=True):
            shown = self.layernorm_kv(state)
            queries = self.layernorm_query(query).expand(len(state), -1, -1)
            for layer in self.layers:
                queries = layer(queries, shown, places)
            seen.append(queries)
        return self.out_proj(self.layernorm_post(torch.cat(seen, 1)))


def sine_positions(side: int, width: int, device: torch.device | None = None) -> Tensor:
    """The table ``(side * side, width)``: half of the channels tell the column, half the row; each half [sin, cos]."""
    rates = 10000.0 ** -(torch.arange(width // 4, device=device) / (width / 4))
    angles = torch.arange(side, device=device)[:, None] * rates
    told = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([told.repeat(side, 1), told.repeat_interleave(side, 0)], 1)


class LhrsForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA with the resampler in place of the projector; called as LLaVA is."""

    config: LhrsConfig

    def __init__(self, config: LhrsConfig):
        super().__init__(config)
        self.model.multi_modal_projector = Resampler(config)


class LhrsProcessor(LlavaProcessor):
    """LLaVA's processor with as many image tokens as there are queries."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = QUERIES,
        chat_template: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        self.image_seq_length = image_seq_length

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:  # noqa: ARG002
        """See the base class."""
        return str(self.image_token) * self.image_seq_length


AutoConfig.register(LhrsConfig.model_type, LhrsConfig)
AutoModelForImageTextToText.register(LhrsConfig, LhrsForConditionalGeneration)
AutoProcessor.register(LhrsConfig, LhrsProcessor)
