"""What the published models compute, written out plainly on the weights as they are published: no cache, no batch."""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import gelu, interpolate, layer_norm, scaled_dot_product_attention, silu

Held = dict[str, torch.Tensor]


def read(folder: Path) -> Held:
    """All weights of a folder, or of ``FINAL.pt`` by dotted names."""
    held: Held = {}
    for file in sorted(folder.glob("*.safetensors")):
        held |= load_file(file)
    for file in sorted(folder.glob("*.bin")):
        held |= torch.load(file, weights_only=True)
    return held


def below(held: Held, prefix: str) -> Held:
    return {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}


def linear(x, held, name):
    return torch.nn.functional.linear(x, held[f"{name}.weight"], held.get(f"{name}.bias"))


def norm(x, held, name, eps=1e-5):
    return layer_norm(x, x.shape[-1:], held[f"{name}.weight"], held[f"{name}.bias"], eps)


def heads_of(x, heads):
    return x.view(len(x), heads, -1).transpose(0, 1)


def attend(q, k, v, heads, causal=False):
    """``(tokens, width)`` each; one sequence."""
    out = scaled_dot_product_attention(heads_of(q, heads), heads_of(k, heads), heads_of(v, heads), is_causal=causal)
    return out.transpose(0, 1).flatten(1)


def tower_states(held: Held, pixels, heads: int, act, eps: float, side: int) -> list[torch.Tensor]:
    """Hidden states of a CLIP or SigLIP tower, the embeddings first."""
    patches = torch.nn.functional.conv2d(
        pixels[None], held["embeddings.patch_embedding.weight"], held.get("embeddings.patch_embedding.bias"), stride=14
    )
    x = patches[0].flatten(1).T
    table = held["embeddings.position_embedding.weight"]
    if "embeddings.class_embedding" in held:
        x = torch.cat([held["embeddings.class_embedding"][None], x])
        x = norm(x + wide(table, side), held, "pre_layrnorm", eps)
    else:
        x = x + table
    states, n = [x], 0
    while f"encoder.layers.{n}.layer_norm1.weight" in held:
        layer = below(held, f"encoder.layers.{n}.")
        y = norm(x, layer, "layer_norm1", eps)
        q, k, v = (linear(y, layer, f"self_attn.{name}_proj") for name in "qkv")
        x = x + linear(attend(q, k, v, heads), layer, "self_attn.out_proj")
        x = x + linear(act(linear(norm(x, layer, "layer_norm2", eps), layer, "mlp.fc1")), layer, "mlp.fc2")
        states.append(x)
        n += 1
    return states


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x):
    return gelu(x, approximate="tanh")


def wide(table, side):
    old = math.isqrt(len(table) - 1)
    if old == side:
        return table
    grid = table[1:].T.reshape(1, -1, old, old)
    grid = interpolate(grid, size=(side, side), mode="bicubic", align_corners=True)
    return torch.cat([table[:1], grid[0].flatten(1).T])


def llava_features(held: Held, tower: Held, pixels, layers, heads: int):
    """Image tokens in the text model's width."""
    states = tower_states(tower, pixels, heads, quick_gelu, 1e-5, pixels.shape[-1] // 14)
    entered = torch.cat([states[layer][1:] for layer in ([layers] if isinstance(layers, int) else layers)], -1)
    return linear(gelu(linear(entered, held, "model.mm_projector.0")), held, "model.mm_projector.2")


def resampled(pool: Held, states, groups=(112, 96, 64), heads=8):
    side, width = math.isqrt(len(states[0])), states[0].shape[1]
    rates = [10000 ** -(i / (width / 4)) for i in range(width // 4)]

    def half(at):
        return [math.sin(at * rate) for rate in rates] + [math.cos(at * rate) for rate in rates]

    places = torch.tensor([half(column) + half(row) for row in range(side) for column in range(side)])
    seen = []
    for state, query in zip(states, pool["query"][0].split(groups), strict=True):
        shown, x = norm(state, pool, "layernorm_kv"), norm(query, pool, "layernorm_query")
        n = 0
        while f"layers.{n}.ln_1.weight" in pool:
            layer = below(pool, f"layers.{n}.")
            weights, biases = layer["attn.in_proj_weight"].chunk(3), layer["attn.in_proj_bias"].chunk(3)
            given = norm(x, layer, "ln_1"), norm(shown + places, layer, "ln_1_kv"), norm(shown, layer, "ln_1_kv")
            q, k, v = (y @ w.T + b for y, w, b in zip(given, weights, biases, strict=True))
            x = x + linear(attend(q, k, v, heads), layer, "attn.out_proj")
            x = x + mixture(norm(x, layer, "ln_2"), layer)
            n += 1
        seen.append(x)
    return linear(norm(torch.cat(seen), pool, "layernorm_post"), pool, "out_proj")


def mixture(x, layer):
    if "mlp.c_fc.weight" in layer:
        return linear(linear(x, layer, "mlp.c_fc"), layer, "mlp.c_proj")
    gates = torch.tanh(x @ layer["mlp.gate.gate_network.0.weight"].T) @ layer["mlp.gate.gate_network.2.weight"].T
    third = gates.sort(1, descending=True).values[:, 2:3]
    shares = gates.masked_fill(gates <= third, -torch.inf).softmax(1)
    of = below(layer, "mlp.calculator.experts.")
    made = [
        (x @ of[f"weight_up.{e}"].T + of[f"bias_up.{e}"]) @ of[f"weight_down.{e}"] + of[f"bias_down.{e}"]
        for e in range(gates.shape[1])
    ]
    return sum(shares[:, e : e + 1] * y for e, y in enumerate(made))


def llama_logits(held: Held, x, config: dict):
    """Logits ``(words,)`` after the last of the embeddings ``(tokens, width)``."""
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    size, eps = x.shape[1] // heads, config["rms_norm_eps"]
    angles = torch.arange(len(x))[:, None] * config.get("rope_theta", 10000.0) ** -(torch.arange(0, size, 2) / size)
    cos, sin = torch.cat([angles, angles], 1).cos()[:, None], torch.cat([angles, angles], 1).sin()[:, None]

    def rms(y, name):
        return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps) * held[f"model.{name}.weight"]

    def turned(y, count):
        y = y.view(len(y), count, size)
        first, second = y.chunk(2, -1)
        return y * cos + torch.cat([-second, first], -1) * sin

    for n in range(config["num_hidden_layers"]):
        layer, y = below(held, f"model.layers.{n}."), rms(x, f"layers.{n}.input_layernorm")
        q = turned(linear(y, layer, "self_attn.q_proj"), heads).flatten(1)
        k = turned(linear(y, layer, "self_attn.k_proj"), kv).repeat_interleave(heads // kv, 1).flatten(1)
        v = linear(y, layer, "self_attn.v_proj").view(len(x), kv, size).repeat_interleave(heads // kv, 1).flatten(1)
        x = x + linear(attend(q, k, v, heads, causal=True), layer, "self_attn.o_proj")
        y = rms(x, f"layers.{n}.post_attention_layernorm")
        y = silu(linear(y, layer, "mlp.gate_proj")) * linear(y, layer, "mlp.up_proj")
        x = x + linear(y, layer, "mlp.down_proj")
    return held["lm_head.weight"] @ rms(x, "norm")[-1]


def embedded(held: Held, ids: list[int], image):
    """The ids as embeddings, the features of the image in place of -200."""
    at, table = ids.index(-200), held["model.embed_tokens.weight"]
    return torch.cat([table[ids[:at]], image, table[ids[at + 1 :]]])


def with_lora(base: Held, adapter: Held, alpha: float) -> Held:
    merged = dict(base)
    for name, a in adapter.items():
        if ".lora_A." in name:
            target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            merged[target] = base[target] + alpha / len(a) * adapter[name.replace("lora_A", "lora_B")] @ a
    return merged
