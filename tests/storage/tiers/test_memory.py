"""Large CPU tensors in huge pages behave as any other tensor."""

import gc
import mmap

import pytest
import torch

from keyhole.storage.tiers.memory import empty, into_huge_pages, mapped_bytes

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


def test_what_is_read_of_a_mapped_file_counts(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(32 << 20))
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 32 << 20)
    before = mapped_bytes()
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    assert tensor.sum() == 0
    assert mapped_bytes() - before > 24 << 20
    memory.madvise(mmap.MADV_DONTNEED)
    assert mapped_bytes() - before < 8 << 20


def test_a_system_that_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr("keyhole.storage.tiers.memory._STATUS", tmp_path / "none")
    assert mapped_bytes() == 0


@pytest.mark.parametrize("nbytes", [0, 1, (2 << 20) - 1, 5 << 20, (9 << 20) + 7])
def test_memory_of_others_stays_where_and_what_it_is(nbytes):
    held = torch.randint(0, 255, (nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before, address = held.clone(), held.data_ptr()
    into_huge_pages(held)
    into_huge_pages(held[nbytes // 2 :])
    assert held.data_ptr() == address
    assert torch.equal(held, before)
    held.fill_(7)
    assert bool((held == 7).all())


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no huge pages on this system")
def test_memory_is_private():
    """Linux gives shared anonymous memory no huge pages by default."""
    made = []

    class Recording(mmap.mmap):
        def __new__(cls, *args, **options):
            made.append(options["flags"])
            return super().__new__(cls, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmap, "mmap", Recording)
        empty((1, 1, 1 << 20, 4), torch.float32, CPU)
    assert made == [mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS]
