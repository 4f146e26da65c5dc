"""The converted families as the evaluation sees them: asked as published, boxes where the model saw them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from src.errors import JobError
from src.evaluation.adapters import get_adapter
from src.evaluation.backends import Sampling
from src.evaluation.tasks import Sample, known_tasks

FOLDERS = {"geochat": "geochat", "skysensegpt": "skysensegpt", "vhm": "vhm", "lhrs": "lhrsbot_nova"}
WRITTEN = {"geochat": "{{<{}><{}><{}><{}>|<0>}}", "skysensegpt": "({{<{}><{}><{}><{}>|<0>}})"}
WRITTEN |= {"vhm": "[[{}, {}, {}, {}]]", "lhrs": "<bbox>[{}, {}, {}, {}]</bbox>"}
BOUNDS = {"geochat": 100, "skysensegpt": 100, "vhm": 1000, "lhrs": 1}


@pytest.fixture(scope="module")
def adapters(converted_vlm):
    """The adapter of each family, by its name as ``--model_type`` has it."""
    return {
        name: get_adapter(name, str(converted_vlm(folder)), device="cpu", progress=False)
        for name, folder in FOLDERS.items()
    }


SEEN = [(family, size) for family in FOLDERS for size in [(300, 180), (120, 240), (200, 200)]]
# VHM sees the middle square only, yet its boxes are, as published, of the whole image.
SEEN = [(family, size) for family, size in SEEN if family != "vhm" or size[0] == size[1]]


@pytest.mark.parametrize(("family", "size"), SEEN)
def test_a_box_lies_where_the_model_saw_it(adapters, family, size):
    """A bright field is found in the pixels that enter the model and told in the family's way: it must come back."""
    width, height = size
    field = (0.25 * width, 0.3 * height, 0.7 * width, 0.8 * height)
    image = np.zeros((height, width, 3), np.uint8)
    image[int(field[1]) : int(field[3]), int(field[0]) : int(field[2])] = 255
    adapter = adapters[family]
    shown = adapter.backend.processor.image_processor(images=[Image.fromarray(image)], return_tensors="pt")
    pixels = shown["pixel_values"][0, 0]
    rows, columns = torch.nonzero(pixels > pixels.max() - 0.5, as_tuple=True)
    side = pixels.shape[-1]
    corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    told = WRITTEN[family].format(*(round(float(corner) / side * BOUNDS[family], 4) for corner in corners))
    (found,) = adapter.boxes(f"It is {told}.", size)
    np.testing.assert_allclose(found, field, atol=1.5)


def test_vhm_tells_boxes_of_the_whole_image(adapters):
    assert adapters["vhm"].boxes("[[0, 250, 500, 1000]]", (300, 180)) == [(0, 45, 150, 180)]


@pytest.mark.parametrize("family", FOLDERS)
def test_published_extractors(adapters, published_vlms, family):
    told = json.loads((published_vlms / FOLDERS[family] / "cases.json").read_text())["extractor"]
    bound = told["normalised_to"]
    for item in told["items"]:
        found = adapters[family].published_boxes(item["answer"], (bound, bound))
        wanted = [tuple(box) for box in item.get("boxes") or [] if len(box) == 4]
        assert (found or []) == wanted, item["answer"]


@pytest.mark.parametrize("family", FOLDERS)
def test_a_sample_is_asked_and_answered(adapters, published_vlms, family):
    image = str(published_vlms / FOLDERS[family] / "images" / "ridge_gray.png")  # grey, and not square
    sample = Sample(0, "scene", images=(image,), question="Classify the scene: ridge, pond or desert?")
    case = json.loads((published_vlms / FOLDERS[family] / "cases.json").read_text())["cases"][6]
    adapter, task = adapters[family], known_tasks()["cls_aid"]
    (turn,) = adapter.turns(task, sample)
    assert turn["content"] == case["assembled_query"].strip()
    requests = [adapter.request(task, sample, Sampling(max_new_tokens=4), blind=blind) for blind in (False, True)]
    shown, blind = adapter.backend.generate(requests)
    assert shown != blind


def test_a_converted_checkpoint_is_known_by_itself_or_must_be_named(converted_vlm):
    assert get_adapter("transformers", str(converted_vlm("lhrsbot_nova")), device="cpu").family.boxes == "lhrs_nova"
    with pytest.raises(JobError, match="geochat, skysensegpt or vhm"):
        get_adapter("transformers", str(converted_vlm("vhm")), device="cpu")
