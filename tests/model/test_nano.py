"""The embedded shape: attention made for CPUs gives what transformers' own does, and repeats no key while decoding."""

import pytest
import torch
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
from transformers.integrations import sdpa_attention

from src.model.nano import prefer_fast_attention


@pytest.fixture(scope="module")
def asked():
    tokenizer = AutoTokenizer.from_pretrained("assets/nano/vlm", padding_side="left")
    return tokenizer(["one plane", "how many red trucks are left of the arena?"], padding=True, return_tensors="pt")


def decoded(model, asked):
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return torch.stack(model.generate(**asked, **options).logits)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_fast_attention_decodes_as_usual_and_repeats_no_key(asked, monkeypatch):
    model = Qwen2VLForConditionalGeneration.from_pretrained("assets/nano/vlm", dtype=torch.float32).eval()
    usual = decoded(model, asked)
    lengths = []
    repeat = sdpa_attention.repeat_kv
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda x, n: lengths.append(x.shape[2]) or repeat(x, n))
    decoded(model, asked)
    prompt = asked["input_ids"].shape[1]
    assert max(lengths) > prompt, "transformers repeats the keys of every step"
    lengths.clear()
    prefer_fast_attention(model)
    torch.testing.assert_close(decoded(model, asked), usual, atol=2e-5, rtol=0)
    assert set(lengths) == {prompt}, "the prompt's alone"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_fast_attention_keeps_gradients(asked):
    grads = []
    for fast in (False, True):
        model = Qwen2VLForConditionalGeneration.from_pretrained("assets/nano/vlm", dtype=torch.float32)
        if fast:
            prefer_fast_attention(model)
        model(**asked, labels=asked["input_ids"]).loss.backward()
        grads.append(model.model.language_model.layers[0].self_attn.k_proj.weight.grad)
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-4)
