"""One slot of each head taken out of rows."""

import pytest
import torch

from keyhole import kernels


@pytest.mark.parametrize("slots", [1, 2, 31, 100])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bfloat16])
def test_rows_behind_move_up(impl, slots, width, dtype):
    """Within a buffer with more room, which stays as it is."""
    make = torch.Generator().manual_seed(slots)
    room = torch.randint(0, 99, (2, 3, slots + 5, width), generator=make).to(dtype)
    before, held = room.clone(), room[:, :, :slots]
    gone = torch.randint(0, slots, (2, 3), generator=make)
    gone[0, 0], gone[1, 1] = 0, slots - 1
    kernels.drop_slots(held, gone, impl=impl)
    for batch in range(2):
        for head in range(3):
            left = [slot for slot in range(slots) if slot != gone[batch, head]]
            assert torch.equal(held[batch, head, : slots - 1], before[batch, head, left])
    assert torch.equal(room[:, :, slots:], before[:, :, slots:])


@pytest.mark.parametrize("bad", [-1, 31])
def test_slots_outside_are_refused_and_nothing_moves(impl, bad):
    held = torch.arange(62).view(1, 2, 31, 1)
    before = held.clone()
    with pytest.raises(ValueError, match="slot is outside"):
        kernels.drop_slots(held, torch.tensor([[3, bad]]), impl=impl)
    assert torch.equal(held, before)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="expected int64"):
        kernels.drop_slots(torch.zeros(1, 2, 3, 1), torch.zeros(1, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match="expected int64"):
        kernels.drop_slots(torch.zeros(1, 2, 3, 1), torch.zeros(2, dtype=torch.int64))
