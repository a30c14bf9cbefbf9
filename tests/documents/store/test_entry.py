"""Files of entries: safetensors that are mapped, verified by page, and refused when changed."""

import os
import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from keyhole.core.errors import DamagedStoreError
from keyhole.documents.store import mapped
from keyhole.documents.store.entry import Entry
from keyhole.documents.store.entry_file import entry_file
from keyhole.documents.store.pages import PAGE


def made(path, tensors, facts=None):
    file = entry_file({"facts": facts or {}}, tensors)
    file.write(path)
    return opened(path, file)


def opened(path, file):
    """As by another process, which has verified nothing."""
    mapped._files.clear()
    return Entry(
        path, "block", "key", "parent", np.zeros(1, np.uint32), file.nbytes, len(file.head), file.digest
    )


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(3)
    return {
        "k.0": torch.randn(2, 100, 24, generator=generator),
        "codes": torch.randint(256, (7, 3), dtype=torch.uint8, generator=generator),
        "half": torch.randn(4097, generator=generator).bfloat16(),
        "one": torch.tensor(5),
        "none": torch.zeros(0, 4),
        "turned": torch.randn(50, 6, generator=generator).T,
    }


def test_what_was_written_is_read_and_is_a_safetensors_file(tmp_path, tensors):
    entry = made(tmp_path / "a.safetensors", tensors, {"rank": 3})
    others = {name: held for name, held in load_file(entry.path).items() if not name.startswith("~")}
    assert entry.facts == {"rank": 3}
    assert entry.names == tuple(tensors)
    assert others.keys() == tensors.keys()
    for name, wanted in tensors.items():
        assert entry.tensor(name).dtype == wanted.dtype
        assert torch.equal(entry.tensor(name), wanted)
        assert torch.equal(others[name], wanted)
    assert entry.nbytes == entry.path.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_reader_of_its_own_finds_the_rows(tmp_path, tensors):
    entry = made(tmp_path / "a.safetensors", tensors)
    for name, wanted in tensors.items():
        at = entry.locate(name)
        assert at.offset % PAGE == 0
        assert at.shape == tuple(wanted.shape)
        assert at.nbytes == wanted.nbytes
        with at.path.open("rb") as file:
            file.seek(at.offset)
            data = file.read(at.nbytes)
        assert data == wanted.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_every_bit_of_the_file_is_verified(tmp_path, tensors):
    file = entry_file({"facts": {}}, tensors)
    path = tmp_path / "a.safetensors"
    file.write(path)
    data = path.read_bytes()
    picked = random.Random(1)
    for place in [*range(0, 16), *picked.sample(range(len(data)), 400), len(data) - 1]:
        changed = bytearray(data)
        changed[place] ^= 1 << picked.randrange(8)
        path.write_bytes(changed)
        entry = opened(path, file)
        with pytest.raises(DamagedStoreError, match=r"a\.safetensors is damaged"):
            entry.check_all()
        for name in tensors:
            with suppress(DamagedStoreError):
                assert torch.equal(entry.tensor(name), tensors[name])
    for size in (0, 7, PAGE, len(data) - 1, len(data) + 1):
        path.write_bytes(data[:size].ljust(size, b"\0"))
        with pytest.raises(DamagedStoreError, match=r"a\.safetensors is damaged: it has"):
            opened(path, file).tensor("none")
    path.unlink()
    with pytest.raises(DamagedStoreError, match="it is gone"):
        opened(path, file).tensor("none")


def test_rows_are_verified_and_others_are_not_read(tmp_path):
    keys = torch.arange(3 * 200 * 100, dtype=torch.float32).view(3, 200, 100)  # rows of 400 bytes
    file = entry_file({"facts": {}}, {"k": keys})
    path = tmp_path / "a.safetensors"
    file.write(path)
    row = 321
    start = opened(path, file).locate("k").offset + row * 400
    data = bytearray(path.read_bytes())
    data[start + 399] ^= 4
    path.write_bytes(data)
    first, last = start // PAGE, (start + 399) // PAGE
    for other in range(600):
        lies = opened(path, file).locate("k").offset + other * 400
        touches = lies // PAGE <= last and (lies + 399) // PAGE >= last
        entry = opened(path, file)
        if touches:
            with pytest.raises(DamagedStoreError, match="of k"):
                entry.check("k", torch.tensor([5, other]))
        else:
            entry.check("k", np.array([[0, other]]))
    assert first <= last
    with pytest.raises(IndexError, match="600"):
        opened(path, file).check("k", np.array([600]))


def test_rows_longer_than_a_page(tmp_path):
    rows = torch.randn(9, 3000, generator=torch.Generator().manual_seed(1))
    file = entry_file({"facts": {}}, {"k": rows})
    path = tmp_path / "a.safetensors"
    file.write(path)
    offset = opened(path, file).locate("k").offset
    for place in (4 * 12000, 4 * 12000 + 6000, 5 * 12000 - 1):
        data = bytearray(path.read_bytes())
        data[offset + place] ^= 1
        path.write_bytes(data)
        with pytest.raises(DamagedStoreError):
            opened(path, file).check("k", np.array([4]))
        opened(path, file).check("k", np.array([1, 7]))
        data[offset + place] ^= 1
        path.write_bytes(data)


def test_what_was_verified_is_not_read_again(tmp_path):
    entry = made(tmp_path / "a.safetensors", {"k": torch.ones(64, 64)})
    entry.check("k")
    data = bytearray(entry.path.read_bytes())
    data[-1] ^= 1
    entry.path.write_bytes(data)
    entry.check("k")
    with pytest.raises(DamagedStoreError):
        entry.check_all()


def test_maps_keep_no_file_open_and_writing_to_them_changes_no_file(tmp_path):
    entry = made(tmp_path / "a.safetensors", {"k": torch.ones(64, 64)})
    before = len(os.listdir("/proc/self/fd"))
    entry.tensor("k").zero_()
    assert len(os.listdir("/proc/self/fd")) == before
    assert load_file(entry.path)["k"].min() == 1


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({}, ValueError, "without tensors"),
        ({"k": torch.tensor([1.0, float("nan")])}, ValueError, "k holds NaN"),
        ({"k": torch.tensor([1.0, float("inf")]).half()}, ValueError, "k holds NaN or infinity"),
        ({"~k": torch.zeros(1)}, ValueError, "'~k'"),
        ({"__metadata__": torch.zeros(1)}, ValueError, "__metadata__"),
        ({"k": torch.zeros(1, dtype=torch.complex64)}, TypeError, "complex64"),
    ],
)
def test_what_cannot_be_stored_is_named(tensors, error, message):
    with pytest.raises(error, match=message):
        entry_file({}, tensors)
