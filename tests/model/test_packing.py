"""A packed row against its answers one by one."""

import pytest
import torch
from safetensors.torch import load_file

from src.model.packing import conversation_positions, fill_rows, pack, packed_mask
from src.model.qwen_reward import Qwen2Reward
from tests.conftest import LEGACY


def test_pack_by_hand():
    ids, segments = pack([[[1, 2, 3], [1, 2, 4, 5]], [[7], [7, 8]]], pad_id=0)
    assert ids.tolist() == [[1, 2, 3, 4, 5], [7, 7, 8, 0, 0]]
    assert segments.tolist() == [[0, 0, 1, 2, 2], [1, 2, 2, -1, -1]]


def test_rows_are_filled_and_nothing_is_lost():
    assert fill_rows([3, 9, 1, 5], None) == [[0, 1, 2, 3]]
    assert fill_rows([3, 9, 1, 5], 10) == [[1, 2], [3, 0]]
    lengths = [(7 * k * k) % 31 + 1 for k in range(60)]
    rows = fill_rows(lengths, 40)
    assert sorted(number for row in rows for number in row) == list(range(60))
    assert max(sum(lengths[number] for number in row) for row in rows) <= 40
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // 40) + 1


def test_positions_by_hand():
    """Two tokens of text, an image of 2 x 3 tokens, one of text, an image of one token, text."""
    ids = torch.tensor([1, 1, *[9] * 6, 1, 9, 1])
    found = conversation_positions(ids, [(1, 4, 6), (1, 2, 2)], 9, 2)
    assert found.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7],
    ]


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
