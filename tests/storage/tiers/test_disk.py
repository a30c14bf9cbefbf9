"""Rows on disk are what was written, or an error that names the file; and they go when nobody holds them."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from copy import copy, deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.core.errors import DamagedStorageError
from keyhole.storage.tiers.disk import DiskBuffer
from keyhole.storage.tiers.host import HostBuffer
from tests.limits import limited_files
from tests.storage.histories import drawing, histories, play

BUFFERS = {"disk": lambda: DiskBuffer(64), "disk in odd blocks": lambda: DiskBuffer(3), "host": HostBuffer}
ROW = 2 * 3 * 5 * 4  # bytes


def filled(count=300, dtype=torch.float32):
    rows = drawing(dtype=dtype)(count)
    buffer = DiskBuffer(64)
    buffer.append(rows)
    return buffer, rows


def overwrite(buffer, at, data):
    """Write behind the buffer's back, as another process of this user could."""
    time.sleep(0.02)  # the clock of the file system goes in steps
    extent = buffer._file._extent
    os.pwrite(extent.arena._file.fileno(), data, extent.start + at)


def names(directory):
    return os.listdir(directory)


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


def test_rows_that_do_not_fit_are_refused():
    buffer, rows = filled()
    with pytest.raises(ValueError, match="2, 3, 300, 5"):
        buffer.append(rows[..., :4])
    assert torch.equal(buffer.view(), rows)


def test_an_empty_buffer_says_so():
    buffer = DiskBuffer(64)
    buffer.crop(0)
    buffer.reorder(torch.tensor([0]))
    assert (buffer.length, buffer.nbytes) == (0, 0)
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


def test_nothing_is_ever_seen_in_the_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    buffer, rows = filled()
    buffer.append(rows)
    assert names(tmp_path) == []
    assert os.fstat(buffer._file._extent.arena._file.fileno()).st_mode & 0o077 == 0


def test_space_goes_back_with_the_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other, _ = filled()
    arena = weakref.ref(other._file._extent.arena)

    def taken():
        return os.fstat(arena()._file.fileno()).st_blocks

    before = taken()
    buffer, _ = filled(5000)
    assert taken() - before >= 5000 * 2 * 3 * 5 * 4 // 512
    del buffer
    gc.collect()
    assert taken() == before
    del other
    gc.collect()
    assert arena() is None


@pytest.mark.parametrize("length", [0, 130, 300])
def test_a_copy_has_files_of_its_own(length):
    buffer, rows = filled()
    buffer.crop(length)
    copied = deepcopy(buffer)
    assert copied.length == length
    for one, other in ((buffer, 0), (copied, 1)):
        one.append(rows[:, :, other : other + 1])
        assert torch.equal(one.view(), torch.cat([rows[:, :, :length], rows[:, :, other : other + 1]], 2))


def test_pickles_and_shallow_copies_name_the_way_out():
    for use in (pickle.dumps, copy):
        with pytest.raises(TypeError, match=r"cache\.save\(path\)"):
            use(filled()[0])


def test_all_buffers_share_one_descriptor():
    first = filled(70)[0]
    before = len(os.listdir("/proc/self/fd"))
    held = [first, *(filled(70)[0] for _ in range(50))]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len({buffer._file._extent.arena for buffer in held}) == 1


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("block", [0, 2, 3])
def test_a_changed_byte_is_named_when_its_block_is_next_read(block, read_before):
    buffer, _ = filled()
    if read_before:
        buffer.view()
    overwrite(buffer, (64 * block + 7) * ROW + 3, b"\x55")
    others = torch.tensor([64 * other for other in range(4) if other != block])
    buffer.reading(others)
    with pytest.raises(DamagedStorageError, match=f"block {block} does not match") as error:
        buffer.reading(torch.tensor([64 * block + 63]))
    assert tempfile.gettempdir() in str(error.value)
    with pytest.raises(DamagedStorageError):
        buffer.view()
    assert buffer.view(64 * block + 64).shape[2] == 300 - 64 * block - 64


def test_a_changed_byte_among_the_newest_rows():
    buffer, _ = filled()
    overwrite(buffer, 299 * ROW, b"\x55")
    for use in (buffer.view, lambda: buffer.crop(298)):
        buffer._file._seen = -1
        with pytest.raises(DamagedStorageError, match="block 4"):
            use()


def test_own_writes_are_not_taken_for_those_of_others():
    buffer, rows = filled()
    buffer.view()
    filled(1000)
    buffer.append(rows[:, :, :1])
    assert not buffer._unread.any()


def test_a_damaged_block_is_not_taken_over():
    """Cutting inside a damaged block must not give it a fresh checksum, nor reordering copy it."""
    buffer, _ = filled()
    overwrite(buffer, 10, b"\x55")
    with pytest.raises(DamagedStorageError):
        buffer.crop(40)
    with pytest.raises(DamagedStorageError):
        buffer.reorder(torch.tensor([1, 0]))


@pytest.mark.parametrize("size", [0, 100, 64 * ROW])
def test_a_file_cut_short_is_never_read(size, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    buffer, rows = filled()
    os.ftruncate(buffer._file._extent.arena._file.fileno(), size)
    for use in (
        buffer.view,
        lambda: buffer.reading(torch.tensor([1])),
        lambda: buffer.append(rows),
        lambda: buffer.crop(290),
    ):
        with pytest.raises(DamagedStorageError, match=f"it has {size} of"):
            use()


def in_a_child(use):
    """What a forked process says that does `use`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            use()
            os.write(writing, b"done")
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as said:
        return said.read()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_leaves_the_rows_alone():
    buffer, rows = filled()

    def collect():
        nonlocal buffer
        del buffer
        gc.collect()

    assert in_a_child(collect) == "done"
    for use in (lambda: buffer.append(rows), buffer.view, lambda: buffer.crop(3)):
        assert in_a_child(use).startswith("UnsupportedCacheError: keys and values on disk belong to")
    assert in_a_child(lambda: filled()[0].view()) == "done"
    assert torch.equal(buffer.view(), rows)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_killed_process(tmp_path, blow):
    script = (
        "import os, torch; from keyhole.storage.tiers.disk import DiskBuffer\n"
        "buffer = DiskBuffer(64); buffer.append(torch.randn(1, 2, 1000, 16)); buffer.view()\n"
        f"os.kill(os.getpid(), {int(blow)})"
    )
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(tmp_path)})
    assert (done.returncode, names(tmp_path)) == (-blow, [])


def test_a_full_disk_is_named_and_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other, rows = filled()
    buffer, _ = filled()
    with limited_files(other._file._extent.arena.end + 8192):
        with pytest.raises(OSError, match=r"cannot keep keys and values on disk.*TMPDIR") as error:
            buffer.append(drawing()(4000))
        assert error.value.filename == str(tmp_path)
        assert torch.equal(other.view(), rows)
    other.append(rows)
    assert torch.equal(other.view(), torch.cat([rows, rows], 2))


def test_rows_of_a_failed_write_are_not_read(monkeypatch):
    buffer, rows = filled()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("keyhole.storage.tiers.arena.Arena.write", full)
    with pytest.raises(OSError, match="No space left"):
        buffer.append(rows)
    monkeypatch.undo()
    for use in (buffer.view, lambda: buffer.append(rows)):
        with pytest.raises(DamagedStorageError, match="an earlier write failed"):
            use()
    buffer.crop(0)
    buffer.append(rows)
    assert torch.equal(buffer.view(), rows)


def test_a_directory_that_is_not_there(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/x")
    with pytest.raises(FileNotFoundError, match=r"TMPDIR.*/nowhere/x"):
        filled()


def test_damage_is_a_value_error():
    assert issubclass(DamagedStorageError, ValueError)
