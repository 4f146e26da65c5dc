"""Small random dual encoders of both libraries, in every form in which they are published, for tests."""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

TEXTS = ["two planes", "a River beside fields .", "ship", "grey ship " * 60]
WORDS = ["two", "planes", "a", "river", "River", "beside", "fields", ".", "ship", "grey"]
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 3},
}


def picture(seed: int = 0, size: tuple[int, int] = (91, 70)) -> Image.Image:
    """Smooth colours, as photographs have more of than noise."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def stir(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random values everywhere, norms and biases too, so that no two weights can be taken for one another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if name != "logit_scale":
                weight.add_(torch.randn(weight.shape, generator=generator) * (0.05 if weight.ndim > 1 else 0.2))
    return model.eval()


def open_clip_model(config: dict = TINY) -> torch.nn.Module:
    torch.manual_seed(0)
    given = {key: value for key, value in config.items() if key != "custom_text"}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    return stir(kind(**given))


def open_clip_folder(folder: Path, config: dict = TINY, preprocess: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    save_file(open_clip_model(config).state_dict(), folder / "open_clip_model.safetensors")
    described = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    return folder


def word_tokenizer(begin_first: bool = True) -> PreTrainedTokenizerFast:
    """Whole words; the ids of begin, end and padding are lower than all others, or else higher."""
    special = ["<unk>", "<pad>", "<begin>", "<sep>", "<end>"]
    tokens = special + WORDS if begin_first else WORDS + special
    made = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, tokens.index(token)) for token in ("<begin>", "<end>")]
    made.post_processor = processors.TemplateProcessing(single="<begin> $A <end>", special_tokens=ends)
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<begin>", "eos_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=16, **names)


def transformers_clip(tokenizer: PreTrainedTokenizerFast, eos: int | None = None, **vision) -> tuple:
    torch.manual_seed(1)
    shared = {"hidden_act": vision.pop("hidden_act", "quick_gelu"), "projection_dim": 20}
    text = {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 3}
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "bos_token_id": tokenizer.bos_token_id}
    text |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id if eos is None else eos}
    seen = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    seen |= {"image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6} | vision
    model = CLIPModel(CLIPConfig(text_config=text | shared, vision_config=seen | shared, projection_dim=20))
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return stir(model), CLIPProcessor(images, tokenizer)


def transformers_folder(folder: Path, tokenizer: PreTrainedTokenizerFast, **options) -> Path:
    model, processor = transformers_clip(tokenizer, **options)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def siglip_folder(folder: Path) -> Path:
    torch.manual_seed(2)
    tokenizer = word_tokenizer()
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 12, "projection_size": 32}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = stir(
        SiglipModel(SiglipConfig(text_config=text, vision_config=vision | {"image_size": 32, "patch_size": 8}))
    )
    model.save_pretrained(folder)
    SiglipProcessor(SiglipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder
