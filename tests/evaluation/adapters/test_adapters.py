"""Families of models: how they are found, asked, and read; and three of them run on tiny random checkpoints."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from src.chat import THINKING, prompt_messages
from src.errors import JobError
from src.evaluation.adapters import MODEL_TYPES, Adapter, family_of, get_adapter
from src.evaluation.adapters.families import FAMILIES
from src.evaluation.backends import Sampling
from src.evaluation.backends.transformers_model import TransformersBackend
from src.evaluation.tasks import Sample, Task, known_tasks

BASE = Path(__file__).parents[3] / "assets" / "nano" / "base"
SAMPLE = Sample(0, "s", ("a.png",), "the white plane")


def adapter(family: str, system: str | None = None) -> Adapter:
    return Adapter(SimpleNamespace(), FAMILIES[family], system)


@pytest.mark.parametrize(
    ("family", "asked"),
    [
        ("geochat", "[grounding] the white plane"),
        ("skysensegpt", "[detection] the white plane"),
        ("vhm", "{VG} the white plane"),
        ("lhrs", "[DET] the white plane"),
        ("llava", "Please provide the bounding box coordinate of the region this sentence describes: the white plane"),
    ],
)
def test_a_question_stands_in_its_familys_sentence_without_stray_blanks(family, asked):
    """Defect 95: stray blanks around every question."""
    (turn,) = adapter(family).turns(known_tasks()["rs_vg"], SAMPLE)
    assert turn == {"role": "user", "content": asked}
    (turn,) = adapter("qwen2_vl").turns(known_tasks()["cls_aid"], SAMPLE)
    assert turn["content"] == "the white plane"


def test_every_family_asks_and_reads_boxes_and_takes_a_reasoning_prompt():
    """Defects 75 (LLaVA had no reader of boxes), 46 (a reasoning prompt for some families only), 73, 74 (odd boxes)."""
    for family in FAMILIES:
        made = adapter(family, "Think first.")
        for task in known_tasks().values():
            turns = made.turns(task, SAMPLE)
            assert turns[0] == {"role": "system", "content": "Think first."}
            assert "the white plane" in turns[1]["content"]
        for text in ("", None, "no box", "[1, 2, 3]", "[a, b, c, d]", '```json\n{"bbox_2d": 5}\n```'):
            assert made.boxes(text, (100, 50)) == []
            made.published_boxes(text, (100, 50))


def test_boxes_are_put_back_into_the_image():
    """Defects 26 (padded squares), 118 (blanks), 79 (no answer tag); Qwen2.5-VL has pixels of the resized image."""
    # 1000 x 500 is padded above and below by 250: the square's middle half is the image.
    assert adapter("geochat").boxes("{<0><25><50><75>|<90>}", (1000, 500)) == [(0, 0, 500, 500)]
    assert adapter("geochat").boxes("{<0><0><50><50>}", (1000, 500)) == [(0, 0, 500, 250)]
    assert adapter("geochat").boxes("{<0><0><50><20>}", (1000, 500)) == []  # in the bar alone
    assert adapter("vhm").boxes("[[0, 250, 500, 750]]", (1000, 500)) == [(0, 125, 500, 375)]
    assert adapter("llava").boxes("[0.1, 0.2, 0.5, 0.8]", (1000, 500)) == [(100, 100, 500, 400)]
    (box,) = adapter("qwen2_5_vl").boxes('[{"bbox_2d": [406, 0, 812, 406]}]', (800, 800))  # seen with 812 x 812 pixels
    assert box == pytest.approx((400, 0, 800, 400))
    assert adapter("qwen2_vl").boxes("(10, 20), (30.5, 40)", (1000, 1000)) == [(10, 20, 30.5, 40)]
    assert adapter("qwen2vl_rs_r1").boxes("<think>[9, 9, 99, 99]</think> [10, 20, 30, 40]", (1000, 1000)) == [
        (10, 20, 30, 40)
    ]
    assert adapter("qwen2vl_rs_r1").boxes("no tag at all", (9, 9)) == []


def test_a_family_is_found_by_the_configuration_then_by_the_name(tmp_path):
    """Defect 86: a hub id or a new checkpoint stopped the run."""

    def folder(name: str, **config: object) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return str(tmp_path / name)

    assert family_of(folder("a", model_type="qwen2_5_vl")) == "qwen2_5_vl"
    assert family_of(folder("b", model_type="llava_next")) == "llava"
    assert family_of(folder("InternVL3-8B-hf", model_type="internvl")) == "internvl3"
    assert family_of(folder("c", model_type="internvl")) == "internvl"
    assert family_of(folder("d", model_type="something_new")) == "generic"
    assert family_of(folder("geochat-converted", model_type="llava", compat="intended")) == "geochat"
    with pytest.raises(JobError, match="--model_type geochat, skysensegpt or vhm"):
        family_of(folder("e", model_type="llava", compat="intended"))
    assert family_of("Qwen/Qwen2.5-VL-7B-Instruct") == "qwen2_5_vl"
    assert family_of("PumpkinCat/Qwen2VL-7B-RS") == "qwen2_vl"
    assert family_of(folder("Qwen2VL-7B-RS-R1", model_type="qwen2_vl")) == "qwen2vl_rs_r1"
    assert family_of("") == "generic"
    assert family_of(str(BASE)) == "qwen2_vl"


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(JobError, match="unknown model type 'nova'; known: transformers, vllm, lmdeploy, openai"):
        get_adapter("nova", str(BASE))
    with pytest.raises(JobError, match="unknown family 'x'; known: qwen2_vl"):
        get_adapter("transformers", str(BASE), family="x")


def test_engines_are_imported_where_they_are_used():
    """Defects 44 (no engine's package is needed by another's adapter) and 35 (the given path is what is loaded)."""
    assert {"vllm", "lmdeploy", "openai", "transformers", "geochat", "skysensegpt", "vhm", "lhrs"} <= {*MODEL_TYPES}
    for engine in ("vllm", "lmdeploy"):
        with pytest.raises(JobError, match=f"{engine} needs the package"):
            get_adapter(engine, str(BASE))
    with pytest.raises(JobError, match="my_vhm"):
        get_adapter("vhm", "my_vhm", progress=False)
    with pytest.raises(JobError, match="there is no model assets/nano/none"):
        get_adapter("transformers", "assets/nano/none")


def test_the_reasoning_family_asks_for_tags():
    made = get_adapter("qwen2vl_rs_r1", str(BASE), progress=False, device="cpu")
    system, _ = made.turns(Task("f", "vqa"), SAMPLE)
    assert "<think>" in system["content"]
    assert get_adapter("transformers", str(BASE), reasoning=THINKING, device="cpu").system == system["content"]


TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}IMAGE\n{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(**tokens: str):
    made = AutoTokenizer.from_pretrained(BASE, extra_special_tokens=tokens)
    made.add_special_tokens({"additional_special_tokens": [*tokens.values()]}, replace_extra_special_tokens=False)
    return made


def qwen2_5_vl():
    text = tokenizer()
    ids = {key: text.convert_tokens_to_ids(f"<|{name}|>") for key, name in (
        ("image_token_id", "image_pad"), ("video_token_id", "video_pad"),
        ("vision_start_token_id", "vision_start"), ("vision_end_token_id", "vision_end"))}  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
              "fullatt_block_indexes": [1], "window_size": 56}  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": len(text), "rope_parameters": rope}, vision_config=vision, **ids
    )
    pictures = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112)
    template = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = Qwen2_5_VLProcessor(pictures, text, Qwen2VLVideoProcessor(), chat_template=template)
    return Qwen2_5_VLForConditionalGeneration(config), processor


def llava_next():
    text = tokenizer(image_token="<image>")
    pinpoints = [[56, 28], [28, 56], [56, 56]]
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                              image_size=28, patch_size=14)  # fmt: skip
    inner = LlamaConfig(**TEXT, vocab_size=len(text))
    config = LlavaNextConfig(vision_config=vision, text_config=inner, image_grid_pinpoints=pinpoints,
                             image_token_id=text.convert_tokens_to_ids("<image>"))  # fmt: skip
    pictures = LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints
    )
    processor = LlavaNextProcessor(pictures, text, 14, "default", CHAT.replace("IMAGE", "<image>"),
                                   num_additional_image_tokens=1)  # fmt: skip
    return LlavaNextForConditionalGeneration(config), processor


def internvl():
    text = tokenizer(start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
                     video_token="<video>")  # fmt: skip
    vision = InternVLVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                                  image_size=[28, 28], patch_size=[7, 7])  # fmt: skip
    inner = Qwen2Config(**TEXT, vocab_size=len(text))
    config = InternVLConfig(vision_config=vision, text_config=inner, image_seq_length=4,
                            image_token_id=text.convert_tokens_to_ids("<IMG_CONTEXT>"))  # fmt: skip
    pictures = GotOcr2ImageProcessor(size={"height": 28, "width": 28}, max_patches=2)
    processor = InternVLProcessor(pictures, text, InternVLVideoProcessor(size={"height": 28, "width": 28}), 4,
                                  CHAT.replace("IMAGE", "<IMG_CONTEXT>"))  # fmt: skip
    return InternVLForConditionalGeneration(config), processor


@pytest.mark.parametrize(
    ("make", "family"), [(qwen2_5_vl, "qwen2_5_vl"), (llava_next, "llava"), (internvl, "internvl")]
)
def test_a_checkpoint_of_transformers_own_form_runs_in_batches(make, family, tmp_path):
    """Batched texts are those of the model's own generate on each request alone."""
    torch.manual_seed(0)
    model, processor = make()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)  # far from ties
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((56, 56), (40, 90))]
    made = get_adapter("transformers", str(tmp_path), batch_size=4, device="cpu", progress=False)
    assert made.family is FAMILIES[family]
    task = known_tasks()["rs_vg"]
    asked = [(pictures[0], "a ship"), (pictures[1], "the long pier beside the road"), (pictures[0], "a tank")]
    samples = [Sample(k, f"{k}", (picture,), text) for k, (picture, text) in enumerate(asked)]
    sampling = Sampling(max_new_tokens=8)
    requests = [made.request(task, sample, sampling) for sample in samples]
    requests.append(made.request(task, samples[0], sampling, blind=True))
    texts = [text for (text,) in made.backend.generate(requests)]
    assert texts == [alone(made.backend, request) for request in requests]
    assert len({*texts}) > 1


def alone(backend: TransformersBackend, request) -> str:
    messages = prompt_messages(request.turns, request.images)
    inputs = backend.processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ids = backend.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
    return backend.processor.tokenizer.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
