"""A packed row against its answers one by one."""

import pytest
import torch
from safetensors.torch import load_file

from src.model.packing import pack, packed_mask
from src.model.qwen_reward import Qwen2Reward
from tests.conftest import LEGACY


def test_pack_by_hand():
    ids, segments = pack([[[1, 2, 3], [1, 2, 4, 5]], [[7], [7, 8]]], pad_id=0)
    assert ids.tolist() == [[1, 2, 3, 4, 5], [7, 7, 8, 0, 0]]
    assert segments.tolist() == [[0, 0, 1, 2, 2], [1, 2, 2, -1, -1]]


def test_mask_by_hand():
    (mask,) = packed_mask(torch.tensor([[0, 1, 1, 2, -1]]))[0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("scheme", ["mrope", "sequential"])
def test_packed_answers_score_as_if_alone_and_so_do_gradients(scheme, legacy_cases):
    vision = load_file(LEGACY / "vision.safetensors")
    (case,) = (case for case in legacy_cases["cases"] if case["name"] == "qa_image_before_text")
    row, model = case["input_ids"][0], Qwen2Reward.from_pretrained(LEGACY / "checkpoint", position_scheme=scheme)
    groups = [[row, [*row[:-4], 300, 301], [*row[:-6], 302]], [[*row[:-3], 17], row, [*row[:-8], 5, 6, 7, 8, 9]]]
    pixels, grid = (vision[f"{key}/runway.png"] for key in ("pixel_values", "image_grid_thw"))
    one = {"pixel_values": pixels, "image_grid_thw": grid.view(1, 3)}

    alone = torch.cat([model(torch.tensor([r]), **one, return_loss=False).values for group in groups for r in group])
    ids, segments = pack(groups, pad_id=1300)
    two = {"pixel_values": torch.cat([pixels, pixels]), "image_grid_thw": grid.view(1, 3).repeat(2, 1)}
    packed = model(ids, segment_ids=segments, **two, return_loss=False).values
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)

    head = model.model.visual.patch_embed.proj.weight
    (expected,) = torch.autograd.grad(alone.sum(), head)
    (found,) = torch.autograd.grad(packed.sum(), head)
    torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-3)
