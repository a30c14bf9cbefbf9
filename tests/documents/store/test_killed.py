"""Processes killed at any moment lose nothing that was added before, and leave nothing in the way."""

import os
import random
import signal
import time

import pytest

from keyhole.documents.store import BLOCK, Store
from tests.documents.store.synthetic import FINGERPRINT, add, contents, read, tokens

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

BLOCK_BYTES = 10 * 4096  # of two tensors of 16 KiB, header and checksums
OLD = {"x": tokens(1, 2 * BLOCK + 30), "y": tokens(2, 3 * BLOCK, shared=2 * BLOCK)}


def in_child(work):
    """Let a forked process do `work`; its pid."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def killed_after(work, seconds):
    """Kill a process that does `work`; whether it was still at it."""
    child = in_child(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def duration(work):
    start = time.monotonic()
    os.waitpid(in_child(work), 0)
    return time.monotonic() - start


class Kills:
    """Commands on a store with documents, killed, looked after, and done again."""

    def __init__(self, root, quota=64 << 20):
        self.root, self.quota, self.round = root, quota, 0
        for name, ids in OLD.items():
            add(self.store(), name, ids, pinned=True)
        self.at_work = 0

    def store(self):
        return Store(self.root, self.quota)

    def kill(self, command, picked):
        self.round += 1
        prepare, work, check = getattr(self, command)(self.round)
        prepare()
        longest = duration(work)
        check()
        prepare()
        self.at_work += killed_after(work, picked.uniform(0, 0.7 * longest))
        self.look()
        work()
        check()
        self.look()

    def look(self):
        store = self.store()
        assert store.verify().clean
        for name, ids in OLD.items():
            read(store, name, ids)
        for each in store.documents():
            if each.finished:
                read(store, each.name)

    def add(self, number):
        ids = tokens(100 + number, 3 * BLOCK + 5)
        return self._adding(ids)

    def add_sharing(self, number):
        ids = tokens(100 + number, 3 * BLOCK + 5, shared=2 * BLOCK)
        return self._adding(ids, shared=2)

    def _adding(self, ids, shared=0):
        def prepare():
            if "new" in {each.name for each in self.store().documents()}:
                self.store().remove("new")

        def check():
            read(self.store(), "new", ids)
            assert add(self.store(), "new", ids) == 0
            assert self.store().document("new").shared == shared * BLOCK_BYTES

        return prepare, lambda: add(self.store(), "new", ids), check

    def gc(self, number):
        def prepare():
            add(self.store(), "expiring", tokens(100 + number, 3 * BLOCK), ttl=0)
            for place in range(5):
                path = self.root / "blocks" / f"z{place}" / "lost.safetensors"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(bytes(9000))

        def check():
            assert self.store().stats().garbage == 0
            assert "expiring" not in {each.name for each in self.store().documents()}

        return prepare, lambda: self.store().gc(), check

    def remove(self, number):
        def work():
            if "old" in {each.name for each in self.store().documents()}:
                self.store().remove("old")

        def check():
            assert "old" not in {each.name for each in self.store().documents()}
            self.store().gc()
            assert self.store().stats().garbage == 0

        ids = tokens(100 + number, 3 * BLOCK, shared=2 * BLOCK)
        return lambda: add(self.store(), "old", ids), work, check


@pytest.mark.parametrize("command", ["add", "add_sharing", "gc", "remove"])
def test_killed(root, command):
    kills, picked = Kills(root), random.Random(command)
    for _ in range(3):
        kills.kill(command, picked)


@pytest.mark.slow
def test_200_kills(root):
    kills, picked = Kills(root), random.Random(5)
    while kills.at_work < 200:
        kills.kill(("add", "add_sharing", "gc", "remove")[kills.at_work % 4], picked)


@pytest.mark.slow
def test_killed_while_it_evicts(root):
    kills, picked = Kills(root, quota=3 << 19), random.Random(6)
    for number in range(60):
        ids = tokens(200 + number, 6 * BLOCK)
        kills.at_work += killed_after(lambda ids=ids: add(kills.store(), "new", ids), picked.uniform(0, 0.3))
        kills.look()
        add(kills.store(), f"d{number}", ids)
        read(kills.store(), f"d{number}", ids)
    assert kills.at_work > 30


def test_what_a_killed_reading_had_stored_is_found(root):
    ids = tokens(9, 20 * BLOCK)
    store = Store(root, 64 << 20)
    child = in_child(lambda: add(store, "long", ids))
    while not any(each.stored > 3 * BLOCK for each in store.documents()):
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    stored = store.document("long").stored
    with store.begin("long", ids, FINGERPRINT) as writer:
        assert writer.position == stored >= 3 * BLOCK
    assert stored // BLOCK + add(store, "long", ids) == 20
    assert contents(store) == {("long", True): (ids.tolist(), len(ids))}


def test_a_killed_readers_lease_is_over(root):
    store = Store(root)
    add(store, "a", tokens(1, 5))

    def hold():
        with store.open("a"):
            time.sleep(60)

    child = in_child(hold)
    while not store.stats().leased:
        time.sleep(0.01)
    assert store.remove("a") == 0
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert store.gc().files == 1
    assert list(store.path.joinpath("leases").iterdir()) == []
