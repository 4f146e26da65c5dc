"""A CLIP model with random weights, about 100,000 of them, and a tokeniser of bytes: small, quick, offline."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

WORDS = "a the of satellite photo image airport harbour beach forest road building ship plane red white two three"


def save_tiny_clip(folder: Path, seed: int = 0, side: int = 32) -> Path:
    """Write the model with its processor to ``folder`` and return it; one seed, one model."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<start>", "<end>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    start, end = tokenizer.token_to_id("<start>"), tokenizer.token_to_id("<end>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<unk>",
        model_max_length=32,
    )  # fmt: skip
    size = {"height": side, "width": side}
    pictures = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=size)
    text = {"vocab_size": len(fast), "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 32, "bos_token_id": start, "eos_token_id": end,
            "pad_token_id": end}  # fmt: skip
    vision = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
              "image_size": side, "patch_size": 8}  # fmt: skip
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))
    model.save_pretrained(folder)
    CLIPProcessor(pictures, fast).save_pretrained(folder)
    return folder
