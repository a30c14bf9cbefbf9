"""Rows are picked from tensors of any strides."""

import pytest
import torch

from keyhole.storage.formats.base import at

SHAPES = {
    "contiguous": torch.randn(2, 3, 50, 6),
    "a part of each row": torch.randn(2, 3, 50, 20)[..., 5:11],
    "a part of the capacity": torch.randn(2, 3, 90, 6)[:, :, :50],
    "by slot": torch.randn(50, 2, 3, 6).permute(1, 2, 0, 3),
    "from a slot on": torch.randn(53, 2, 3, 7).permute(1, 2, 0, 3)[:, :, 3:, 1:],
    "one for all heads": torch.randn(2, 1, 50, 6).expand(-1, 3, -1, -1),
}


@pytest.mark.parametrize("tensor", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_one_place(tensor, dtype):
    slots = torch.randint(50, (2, 3, 11), dtype=dtype)
    slots[..., 0], slots[..., 1] = 0, 49
    picked = at(tensor, slots)
    for row in range(2):
        for head in range(3):
            assert torch.equal(picked[row, head], tensor[row, head, slots[row, head].tolist()])


@pytest.mark.parametrize("width", [1, 6])
def test_two_places(width):
    tensor = torch.randn(2, 3, 10, 8 * 9)[..., 4 : 4 + 8 * width].unflatten(-1, (8, width))
    row, token = torch.randint(10, (2, 3, 7)), torch.randint(8, (2, 3, 7))
    picked = at(tensor, row, token)
    for b in range(2):
        for h in range(3):
            for s in range(7):
                assert torch.equal(picked[b, h, s], tensor[b, h, row[b, h, s], token[b, h, s]])
