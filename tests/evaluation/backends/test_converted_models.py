"""Converted checkpoints answer through the back end ``transformers`` as their published loaders do, in batches too."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from src.errors import JobError
from src.evaluation.backends import Request, Sampling, get_backend

FAMILIES = ("geochat", "skysensegpt", "vhm", "lhrsbot_nova")
EIGHT = Sampling(max_new_tokens=8)


def cases_of(published_vlms, family):
    told = json.loads((published_vlms / family / "cases.json").read_text())["cases"]
    return [case for case in told if "config_override" not in case]


@pytest.fixture
def asked(published_vlms):
    """Requests for all cases of a family, one of them about a grey image, and the texts that are right."""

    def ask(family, compat):
        cases = cases_of(published_vlms, family)
        images = published_vlms / family / "images"
        requests = [Request(case["assembled_query"], [images / case["image"]], name=case["name"]) for case in cases]
        return requests, [case["results"][compat]["returned_text"] for case in cases]

    return ask


@pytest.mark.parametrize(("family", "compat"), [*((family, "intended") for family in FAMILIES), ("vhm", "published")])
def test_texts_are_the_published_ones(converted_vlm, asked, family, compat):
    model = get_backend("transformers", converted_vlm(family, compat), device="cpu", progress=False)
    requests, wanted = asked(family, compat)
    made = [text.strip() for (text,) in model.generate(requests, EIGHT)]
    # Of bytes that are no text, sentencepiece still shows those that could be, the tokenizers library none.
    readable = [number for number, text in enumerate(wanted) if "\ufffd" not in text or family == "lhrsbot_nova"]
    assert readable
    assert [made[number] for number in readable] == [wanted[number] for number in readable]
    if compat == "intended":
        assert [model.generate([request], EIGHT)[0][0].strip() for request in requests[:3]] == made[:3]


def test_vhm_answers_with_the_weights_that_it_is_given(converted_vlm, asked, tmp_path):
    """The published adapter loads one checkpoint whatever path it is given, by a keyword that has gone."""
    other = shutil.copytree(converted_vlm("vhm"), tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file(weights | {"lm_head.weight": -weights["lm_head.weight"]}, other / "model.safetensors", {"format": "pt"})
    requests, _ = asked("vhm", "intended")
    told = [
        get_backend("transformers", path, device="cpu", progress=False).generate(requests[:2], EIGHT)
        for path in (converted_vlm("vhm"), other)
    ]
    assert told[0] != told[1]


@pytest.mark.parametrize("family", ["vhm", "lhrsbot_nova"])
def test_questions_without_an_image_and_with_two(converted_vlm, asked, family):
    model = get_backend("transformers", converted_vlm(family), device="cpu", progress=False)
    (first, second, *_), _ = asked(family, "intended")
    two = Request("<image>\nWhat changed until <image>?", [*first.sources, *second.sources])
    requests = [Request("What does a harbour have?"), two, first]
    together = model.generate(requests, EIGHT)
    assert together == [model.generate([request], EIGHT)[0] for request in requests]


@pytest.mark.parametrize("family", ["geochat", "lhrsbot_nova"])
def test_a_published_layout_is_told_how_to_be_converted(published_vlms, family):
    with pytest.raises(JobError, match=r"published layout; convert it first: .*convert_checkpoint\.py"):
        get_backend("transformers", published_vlms / family / "checkpoint", device="cpu")
