"""A full disk, at any write: a clear error, and nothing is lost."""

import errno
import os
import shutil
import subprocess
import tempfile

import pytest
import torch

from keyhole.documents.store import BLOCK, Store, entry_file, place
from tests.documents.store.synthetic import FINGERPRINT, add, contents, read, tensors, tokens

OLD = {"x": tokens(1, 2 * BLOCK + 30), "y": tokens(2, 3 * BLOCK, shared=2 * BLOCK)}
NEW = tokens(3, 3 * BLOCK + 5, shared=BLOCK)


@pytest.fixture
def filled(store):
    for name, ids in OLD.items():
        add(store, name, ids)
    return store


class Failing:
    """Calls that write, of which the k-th says that the disk is full."""

    def __init__(self, patch, which):
        self.which, self.calls = which, 0
        for home, name in (
            (os, "fsync"), (os, "replace"), (os, "mkdir"), (os, "rename"), (os, "open"), (entry_file, "_put"),
            (tempfile, "mkstemp"),
        ):  # fmt: skip
            patch.setattr(home, name, self.counted(getattr(home, name)))

    def counted(self, call):
        def wrapper(*args, **kwargs):
            self.calls += 1
            if self.calls == self.which:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
            return call(*args, **kwargs)

        return wrapper


def adding(store):
    add(store, "new", NEW)


def indexing(store):
    with store.open("x") as opened:
        store.put_index(opened, "pq", "1", {"codes": torch.ones(5000)}, seconds=1)


def replacing(store):
    with store.begin("state", NEW, FINGERPRINT, whole=True) as writer:
        for position in (100, len(NEW)):
            if writer.position < position:
                writer.put_state(position, {"kept": torch.ones(position)}, seconds=1)
        writer.finish()


def removing(store):
    add(store, "gone", tokens(9, BLOCK))
    store.remove("gone")


def opening(store):
    Store(store.path)


def look(store):
    """Everything that was there before is there, and right."""
    assert store.verify().clean
    for name, ids in OLD.items():
        read(store, name, ids)


@pytest.mark.parametrize("work", [adding, indexing, replacing, removing, opening])
def test_every_write_that_fails(filled, work, monkeypatch):
    failed = 0
    for which in range(1, 200):
        with monkeypatch.context() as patch:
            failing = Failing(patch, which)
            try:
                work(filled)
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017 - or it can do without
                failed += 1
        look(filled)
        if failing.calls < which:
            break
        work(filled)
        for each in filled.documents():
            if each.name not in OLD:
                filled.remove(each.name)
        with filled.open("x") as opened:
            assert opened.indexes.keys() <= {("pq", "1")}
    assert failed > 0
    assert failing.calls < which
    assert list(filled.path.rglob("*partial*")) == []


def test_making_the_store(root, monkeypatch):
    for which in range(1, 50):
        with monkeypatch.context() as patch:
            failing = Failing(patch, which)
            try:
                Store(root)
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017 - or it can do without
        if failing.calls < which:
            break
        add(Store(root), "a", NEW)
        read(Store(root), "a", NEW)
        shutil.rmtree(root)
    assert failing.calls < which


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], capture_output=True
    ).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


class Filler:
    """A file that leaves so many bytes of a disk free."""

    def __init__(self, path, free):
        self.path = path / "filler"
        self.path.write_bytes(bytes(max(0, shutil.disk_usage(path).free - free)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.path.unlink()


@pytest.mark.parametrize("work", [adding, replacing, removing])
def test_a_disk_that_is_full_after_some_pages(small_disk, work, monkeypatch):
    monkeypatch.setattr(place, "SPARE", 0)  # else it would be known beforehand
    store = Store(small_disk / "store", 3 << 20)
    for name, ids in OLD.items():
        add(store, name, ids)
    failed = 0
    for pages in (*range(40), *range(40, 200, 20)):
        with Filler(small_disk, pages * 4096):
            try:
                work(store)
            except OSError as error:
                assert error.errno == errno.ENOSPC, error  # noqa: PT017 - or there was room enough
                failed += 1
        look(store)
        for each in store.documents():
            if each.name not in OLD:
                store.remove(each.name)
    assert failed >= 4
    work(store)
    look(store)


def test_a_full_disk_is_known_before_it_is_written_to(small_disk):
    store = Store(small_disk / "store", 3 << 20)
    add(store, "x", OLD["x"])
    with Filler(small_disk, 3 << 18), store.begin("new", NEW, FINGERPRINT) as writer:
        with pytest.raises(
            OSError, match=r"No space left on device \([\d,]+ bytes free; [\d,]+ are needed"
        ) as error:
            writer.append(tensors(NEW, 0, BLOCK), seconds=1)
        assert error.value.errno == errno.ENOSPC
    add(store, "new", NEW)


def test_reading_and_removing_work_on_a_full_disk(small_disk):
    store = Store(small_disk / "store", 3 << 20)
    for name, ids in OLD.items():
        add(store, name, ids)
    with Filler(small_disk, 0):
        again = Store(small_disk / "store", 3 << 20)
        assert len(contents(again)) == 2
        read(again, "y", OLD["y"])
        assert again.verify().clean
        again.remove("x")
        assert again.gc().files == 0
    add(store, "x", OLD["x"])
    assert (small_disk / "store" / "ballast").exists()
