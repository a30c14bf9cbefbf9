"""Large CPU tensors in huge pages behave as any other tensor."""

import gc
import mmap

import pytest
import torch

from keyhole.storage.memory import empty

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("tokens", [1, 4095, 65537])
def test_shape_type_and_content(dtype, tokens):
    tensor = empty((2, 3, tokens, 5), dtype, CPU)
    assert tensor.shape == (2, 3, tokens, 5)
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    tensor.fill_(3)
    assert bool((tensor == 3).all())


def test_memory_outlives_the_name_it_was_made_under():
    view = empty((1, 1, 1 << 20, 4), torch.float32, CPU)[:, :, -7:]
    view.fill_(2.5)
    gc.collect()
    other = empty((1, 1, 1 << 20, 4), torch.float32, CPU)
    other.fill_(1)
    assert bool((view == 2.5).all())


def test_a_kernel_without_huge_pages_serves_ordinary_ones(monkeypatch):
    class Refusing(mmap.mmap):
        def madvise(self, *_args):
            raise OSError("no huge pages here")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    tensor = empty((1, 1, 1 << 20, 4), torch.float32, CPU)
    tensor.fill_(1)
    assert tensor.sum() == 4 << 20
