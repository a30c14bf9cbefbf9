"""A digest is of a tensor's numbers, and of all of them."""

import pytest
import torch

from keyhole.core.digest import digest, raw, sample


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 4095, 32768 * 8 - 1, 32768 * 8, 32768 * 8 + 1, 600_001])
def test_each_changed_bit_changes_it(count):
    data = torch.randint(256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = digest(data)
    assert digest(data.clone()) == found
    assert digest(torch.cat([data, torch.zeros(1, dtype=torch.uint8)])) != found
    for place in {0, count // 3, count - 1} if count else ():
        for bit in (0, 7):
            changed = data.clone()
            changed[place] ^= 1 << bit
            assert digest(changed) != found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.float8_e4m3fn])
def test_memory_order_does_not_matter(dtype):
    numbers = torch.randn(37, 53).to(dtype)
    transposed = numbers.t().contiguous().t()
    assert digest(transposed) == digest(numbers) == digest(numbers.unsqueeze(0))
    assert digest(numbers[:, 1:]) == digest(numbers[:, 1:].clone())
    assert raw(numbers).shape == (numbers.nbytes,)


def test_chunks_that_change_places_change_it():
    numbers = torch.randn(4, 32768, dtype=torch.float64)
    assert digest(numbers) != digest(numbers[[1, 0, 2, 3]])


def test_a_sample_shows_what_was_added_to_all():
    weight = torch.randn(300, 200)
    before = sample(weight), sample(weight.t())
    weight += 1e-3
    assert sample(weight) != before[0]
    assert sample(weight.t()) != before[1]
    assert sample(torch.empty(0)) == b""
