"""Rows on disk are what was written, or an error that names the file; and they go when nobody holds them."""

import gc
import os
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.core.errors import DamagedStorageError
from keyhole.storage.tiers.buffer import HostBuffer
from keyhole.storage.tiers.disk import DiskBuffer
from tests.storage.histories import drawing, histories, play

BUFFERS = {"disk": lambda: DiskBuffer(64), "disk in odd blocks": lambda: DiskBuffer(3), "host": HostBuffer}
HEADER = 4096


def filled(count=300, dtype=torch.float32):
    rows = drawing(dtype=dtype)(count)
    buffer = DiskBuffer(64)
    buffer.append(rows)
    return buffer, rows


def overwrite(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize("make", BUFFERS.values(), ids=BUFFERS)
@settings(max_examples=40)
@given(histories)
def test_any_history_equals_plain_tensors(make, history):
    buffer = make()
    for plain in play(history, buffer.append, buffer.crop, buffer.reorder, drawing()):
        assert buffer.length == plain.shape[2]
        assert torch.equal(buffer.view(), plain)
        middle = plain.shape[2] // 2
        assert torch.equal(buffer.view(middle), plain[:, :, middle:])


@settings(max_examples=30)
@given(histories, st.integers(0, 99))
def test_checksums_follow_any_history(history, seed):
    """Whatever happened, blocks not read since they were written agree with their checksums."""
    buffer = DiskBuffer(64)
    for plain in play(history, buffer.append, buffer.crop, buffer.reorder, drawing(seed)):
        if not plain.shape[2]:
            continue
        some = torch.randint(plain.shape[2], (2, 3, 4), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(buffer.reading(some)[:, :, some.flatten()], plain[:, :, some.flatten()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_any_type(dtype):
    buffer, rows = filled(130, dtype)
    assert buffer.view().dtype == dtype
    assert torch.equal(buffer.view(), rows)


@pytest.mark.parametrize("batch", [1, 3])
def test_an_emptied_buffer_takes_another_batch_and_type(batch):
    buffer, _ = filled()
    buffer.crop(0)
    rows = drawing(batch=batch, dtype=torch.bfloat16)(9)
    buffer.append(rows)
    assert torch.equal(buffer.view(), rows)
    assert len(list(buffer.path.parent.glob("rows?"))) == 1


def test_rows_that_do_not_fit_are_refused():
    buffer, rows = filled()
    with pytest.raises(ValueError, match="2, 3, 300, 5"):
        buffer.append(rows[..., :4])
    assert torch.equal(buffer.view(), rows)


def test_an_empty_buffer_says_so():
    buffer = DiskBuffer(64)
    buffer.crop(0)
    buffer.reorder(torch.tensor([0]))
    assert (buffer.length, buffer.nbytes, buffer.path) == (0, 0, None)
    with pytest.raises(ValueError, match="append first"):
        buffer.view()


def test_a_view_outlives_growth_reorder_and_buffer():
    buffer, rows = filled()
    view = buffer.view()
    buffer.append(rows)
    buffer.append(rows)
    buffer.reorder(torch.tensor([1, 0]))
    del buffer
    gc.collect()
    assert torch.equal(view, rows)


def test_the_files_are_private_and_go_with_the_buffer():
    buffer, _ = filled()
    directory = buffer.path.parent
    assert directory.stat().st_mode & 0o077 == 0
    del buffer
    gc.collect()
    assert not directory.exists()


@pytest.mark.parametrize("length", [0, 130, 300])
def test_a_copy_has_files_of_its_own(length):
    buffer, rows = filled()
    buffer.crop(length)
    copied = deepcopy(buffer)
    assert copied.length == length
    for one, other in ((buffer, 0), (copied, 1)):
        one.append(rows[:, :, other : other + 1])
        assert torch.equal(one.view(), torch.cat([rows[:, :, :length], rows[:, :, other : other + 1]], 2))
    assert copied.path.parent != buffer.path.parent


def test_no_files_before_the_first_row(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    buffer = DiskBuffer(64)
    assert not list(tmp_path.iterdir())
    buffer.append(drawing()(1))
    assert buffer.path.is_relative_to(tmp_path)


def test_open_files_do_not_add_up():
    """A model of 80 layers must stay below the usual limit of 1,024 open files."""
    before = len(os.listdir("/proc/self/fd"))
    held = [filled(70)[0] for _ in range(10)]
    assert len(os.listdir("/proc/self/fd")) - before <= len(held)


@pytest.mark.parametrize("block", [0, 2, 3])
def test_a_changed_byte_is_named_when_its_block_is_first_read(block):
    buffer, _ = filled()
    row_bytes = 2 * 3 * 5 * 4
    overwrite(buffer.path, HEADER + (64 * block + 7) * row_bytes + 3, b"\x55")
    others = torch.tensor([64 * other for other in range(4) if other != block])
    buffer.reading(others)
    with pytest.raises(DamagedStorageError, match=f"block {block} does not match") as error:
        buffer.reading(torch.tensor([64 * block + 63]))
    assert str(buffer.path) in str(error.value)
    with pytest.raises(DamagedStorageError):
        buffer.view()
    assert buffer.view(64 * block + 64).shape[2] == 300 - 64 * block - 64


def test_a_damaged_block_is_not_taken_over():
    """Cutting inside a damaged block must not give it a fresh checksum, nor reordering copy it."""
    buffer, _ = filled()
    overwrite(buffer.path, HEADER + 10, b"\x55")
    with pytest.raises(DamagedStorageError):
        buffer.crop(40)
    with pytest.raises(DamagedStorageError):
        buffer.reorder(torch.tensor([1, 0]))


@pytest.mark.parametrize("size", [0, 100, HEADER, HEADER + 64 * 120])
def test_a_file_cut_short_is_never_read(size):
    buffer, rows = filled()
    os.truncate(buffer.path, size)
    for use in (
        buffer.view,
        lambda: buffer.reading(torch.tensor([1])),
        lambda: buffer.append(rows),
        lambda: buffer.crop(290),
    ):
        with pytest.raises(DamagedStorageError, match=f"it has {size} of"):
            use()


def test_a_file_that_is_gone():
    buffer, rows = filled()
    buffer.path.unlink()
    for use in (buffer.view, lambda: buffer.append(rows)):
        with pytest.raises(DamagedStorageError, match="it is gone"):
            use()


@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
def test_damaged_checksums(damage):
    buffer, _ = filled()
    sums = buffer.path.with_name(buffer.path.name + ".sums")
    if damage == "gone":
        sums.unlink()
    else:
        os.truncate(sums, 3) if damage == "cut" else overwrite(sums, 1, b"\x55")
    with pytest.raises(DamagedStorageError, match="block 0"):
        buffer.view()


def test_another_header_is_noticed_when_the_file_grows():
    buffer, rows = filled()
    overwrite(buffer.path, 12, b"other")
    with pytest.raises(DamagedStorageError, match="header"):
        buffer.append(rows)


def test_damage_is_a_value_error():
    assert issubclass(DamagedStorageError, ValueError)
