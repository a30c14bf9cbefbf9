"""Several processes at once: any number read, one adds a document, and equal work is done once."""

import os
import random
import subprocess
import sys
import threading
import time

import pytest

from keyhole.core.errors import UnknownDocumentError
from keyhole.documents.store import BLOCK, Store
from tests.documents.store.synthetic import FINGERPRINT, add, check, read, tokens
from tests.documents.store.test_killed import in_child

SHARED = 2 * BLOCK
IDS = {f"d{seed}": tokens(seed, 3 * BLOCK + 50 * seed, shared=SHARED) for seed in range(4)}


def ended_well(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(children)


def ask(root, seed, rounds, quota=None):
    """Read documents as a process that adds those which are not there."""
    store, picked = Store(root, quota), random.Random(seed)
    for _ in range(rounds):
        name = picked.choice(sorted(IDS))
        try:
            opened = store.open(name)
        except UnknownDocumentError:
            add(store, name, IDS[name])
            continue
        with opened:
            time.sleep(picked.uniform(0, 0.01))
            check(opened.blocks, IDS[name])
            assert sum(len(block.tokens) for block in opened.blocks) == len(IDS[name])


def add_and_remove(root, seed, rounds, quota=None):
    store, picked = Store(root, quota), random.Random(seed)
    for number in range(rounds):
        add(store, "new", tokens(100 + number, 3 * BLOCK, shared=picked.choice([0, BLOCK, SHARED])))
        if picked.random() < 0.5:
            store.gc()
        store.remove("new")


@pytest.mark.parametrize(
    ("readers", "rounds"), [(3, 8), pytest.param(8, 60, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_readers_while_another_adds_and_removes(store, readers, rounds):
    for name, ids in IDS.items():
        add(store, name, ids)
    children = [in_child(lambda seed=seed: ask(store.path, seed, rounds)) for seed in range(readers)]
    children.append(in_child(lambda: add_and_remove(store.path, 99, rounds)))
    assert ended_well(children)
    assert store.verify().clean
    assert {each.name for each in store.documents()} == set(IDS)
    assert store.stats().garbage == 0
    assert sum(each.hits for each in store.documents()) == readers * rounds


@pytest.mark.slow
def test_readers_in_too_little_room(root):
    """What is in use stays; what was evicted is added again."""
    quota = 3 << 19
    Store(root, quota)
    children = [in_child(lambda seed=seed: ask(root, seed, 40, quota)) for seed in range(4)]
    children.append(in_child(lambda: add_and_remove(root, 99, 40, quota)))
    assert ended_well(children)
    assert Store(root, quota).verify().clean


def test_two_processes_that_add_the_same_do_it_once(store):
    ids = tokens(7, 12 * BLOCK)
    counts = store.path.parent / "counts"
    counts.mkdir()

    def work(name):
        made = add(store, name, ids)
        (counts / name).write_text(str(made))

    assert ended_well([in_child(lambda name=name: work(name)) for name in ("a", "b", "c")])
    made = sorted(int((counts / name).read_text()) for name in "abc")
    assert made == [0, 0, 12]
    for name in "abc":
        read(store, name, ids)
        (counts / name).unlink()
    counts.rmdir()


def test_threads_of_one_process(store):
    problems = []

    def work(seed):
        try:
            for number in range(3):
                name, ids = f"t{seed % 2}", tokens(seed % 2, 2 * BLOCK, shared=BLOCK)
                add(store, name, ids)
                read(store, name, ids)
                add(store, f"own{seed}", tokens(10 * seed + number, BLOCK + 5, shared=BLOCK))
        except BaseException as error:
            problems.append(error)
            raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert store.verify().clean
    assert len(store.documents()) == 6


def test_who_waits_may_give_up(store):
    def give_up(done, total):
        raise KeyboardInterrupt(done, total)

    with store.begin("a", [1, 2], FINGERPRINT):
        with pytest.raises(KeyboardInterrupt):
            store.begin("a", [3], FINGERPRINT, waiting=give_up)
        with pytest.raises(KeyboardInterrupt):
            store.begin("b", [1, 2], FINGERPRINT, waiting=give_up)
    with store.begin("b", [1, 2], FINGERPRINT) as writer:
        assert writer.position == 0


def test_listing_imports_no_torch(store):
    add(store, "a", tokens(1, 5))
    code = (
        "import sys; from keyhole.documents.store import Store; "
        f"print([each.name for each in Store({str(store.path)!r}).documents()], 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["['a']", "False"]
