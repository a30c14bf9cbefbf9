"""A bit flipped anywhere is named, or changes nothing of what the store says; it is never answered from."""

import random
import shutil

import pytest
import torch

from keyhole.core.errors import DamagedStoreError
from keyhole.documents.store import BLOCK, Store, mapped
from keyhole.documents.store.database import NAME
from tests.documents.store.synthetic import FINGERPRINT, add, check, contents, read, tensors, tokens

IDS = {
    "a": tokens(1, 2 * BLOCK + 9),
    "b": tokens(2, 3 * BLOCK, shared=BLOCK, shared_seed=7),
    "c": tokens(3, 2 * BLOCK, shared=BLOCK, shared_seed=7),
}


@pytest.fixture
def filled(store):
    for name, ids in IDS.items():
        add(store, name, ids)
    with store.open("a") as opened:
        store.put_index(opened, "pq", "1", {"codes": torch.arange(2000)}, seconds=1)
    with store.begin("state", IDS["a"], FINGERPRINT, whole=True) as writer:
        writer.put_state(len(IDS["a"]), {"kept": torch.arange(3000.0)}, seconds=1)
        writer.finish()
    return store


def ask_everything(root):
    """Use all that the store holds, as a new process would."""
    mapped._files.clear()
    store = Store(root)
    found = contents(store)
    for name, ids in IDS.items():
        if (name, True) in found:
            read(store, name, ids)
        with store.match(ids, FINGERPRINT) as match:
            check(match.blocks, ids)
    with store.open("a") as opened:
        index = opened.index("pq", "1")
        assert index is None or torch.equal(index.tensor("codes"), torch.arange(2000))
    with store.open("state") as opened:
        assert torch.equal(opened.state.tensor("kept"), torch.arange(3000.0))
    return found, [(each.seconds, each.nbytes, each.pinned, each.ttl) for each in store.documents()]


def flip(path, place, bit):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def assert_named_or_nothing_changed(root, path, rounds, seed):
    """Flip bits of a file of a store at `root`, one at a time; how many were named."""
    copy, whole, picked, named = root.parent / "copy", path.read_bytes(), random.Random(seed), 0
    shutil.copytree(root, copy)
    wanted = ask_everything(copy)
    shutil.rmtree(copy)
    relative = path.relative_to(root)
    for _ in range(rounds):
        shutil.copytree(root, copy)
        flip(copy / relative, picked.randrange(len(whole)), picked.randrange(8))
        try:
            assert ask_everything(copy) == wanted
            assert Store(copy).verify().clean
        except DamagedStoreError as error:
            assert NAME in str(error)  # noqa: PT017 - or nothing changed
            named += 1
        finally:
            shutil.rmtree(copy)
    return named


def test_bits_of_the_metadata(filled):
    assert assert_named_or_nothing_changed(filled.path, filled.path / NAME, 25, 1) > 0


@pytest.mark.slow
def test_bits_of_the_metadata_at_many_places(filled):
    assert assert_named_or_nothing_changed(filled.path, filled.path / NAME, 400, 2) > 40


@pytest.mark.parametrize("end", ["-wal", "-shm"])
def test_bits_of_the_log_that_a_killed_process_left(filled, end):
    killed = filled.path.parent / "killed"
    with filled._backing.database.connected() as held:
        held.db.execute("SELECT * FROM documents").fetchall()  # as long as somebody reads, the log stays
        add(filled, "a", IDS["a"])
        filled.change("a", pinned=True)
        shutil.copytree(filled.path, killed)
    assert (killed / f"{NAME}{end}").stat().st_size > 4096
    assert_named_or_nothing_changed(killed, killed / f"{NAME}{end}", 8, 4)
    shutil.rmtree(killed)


@pytest.mark.parametrize("kind", ["blocks", "indexes", "states"])
def test_bits_of_entries(filled, kind):
    path = min((filled.path / kind).rglob("*.safetensors"))
    size, picked = path.stat().st_size, random.Random(3)
    for place in (0, 9, 4095, 4096, 5000, *(picked.randrange(size) for _ in range(10)), size - 1):
        bit = picked.randrange(8)
        flip(path, place, bit)
        report = filled.verify()
        assert [each.path for each in report.damaged] == [path]
        assert report.damaged[0].documents
        assert str(path) in report.damaged[0].what
        try:
            ask_everything(filled.path)
        except DamagedStoreError as error:
            assert path.name in str(error)  # noqa: PT017 - else what was damaged was not needed
        flip(path, place, bit)
    assert filled.verify().clean


def test_repairing_leaves_the_rest_and_reading_goes_on(filled):
    with filled.open("b") as opened:
        damaged = opened.blocks[1].path
    flip(damaged, 9000, 0)
    report = filled.verify(repair=True)
    assert [each.documents for each in report.damaged] == [("b",)]
    assert filled.verify().clean
    for name in "ac":
        read(filled, name, IDS[name])
    assert filled.document("b").stored == BLOCK
    assert add(filled, "b", filled.document("b").tokens) == 2
    read(filled, "b", IDS["b"])


def test_a_shared_block_that_is_damaged_names_all_its_documents(filled):
    with filled.open("b") as opened:
        flip(opened.blocks[0].path, 9000, 0)
    (damage,) = filled.verify(repair=True).damaged
    assert damage.documents == ("b", "c")
    assert {each.name for each in filled.documents()} == {"a", "state"}
    assert filled.verify().clean


def test_a_lost_file_is_named(filled):
    with filled.open("c") as opened:
        lost = opened.blocks[1].path
    lost.unlink()
    (damage,) = filled.verify().damaged
    assert (damage.path, damage.documents) == (lost, ("c",))
    with filled.open("c") as opened, pytest.raises(DamagedStoreError, match="it is gone"):
        opened.blocks[1].tensor("k.0")


def test_files_that_changed_places_are_named(filled):
    with filled.open("b") as b, filled.open("c") as c:
        one, other = b.blocks[1].path, c.blocks[1].path
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    assert {each.path for each in filled.verify().damaged} == {one, other}


def test_rows_that_were_changed_or_removed_are_named(filled):
    import sqlite3

    def changed(statement):
        copy = filled.path.parent / "copy"
        shutil.copytree(filled.path, copy)
        db = sqlite3.connect(copy / NAME)
        db.execute(statement)
        db.commit()
        db.close()
        return copy

    for statement in (
        "UPDATE documents SET method = 'other' WHERE name = 'a'",
        "UPDATE entries SET seconds = seconds + 1",
        "UPDATE sums SET rows = rows + 1 WHERE name = 'entries'",
        "DROP TRIGGER entries_delete",
        "PRAGMA user_version = 7",
    ):
        copy = changed(statement)
        with pytest.raises(DamagedStoreError, match=r"store\.sqlite.*remove that file"):
            ask_everything(copy)
        shutil.rmtree(copy)


def test_discarding_begins_anew_and_the_old_files_are_garbage(filled):
    path = filled.path / NAME
    path.write_bytes(b"x" * 5000)
    with pytest.raises(DamagedStoreError, match=r"store\.sqlite is damaged"):
        Store(filled.path)
    store = Store(filled.path, discard=True)
    assert store.documents() == []
    assert store.stats().garbage > 0
    add(store, "a", IDS["a"])
    store.gc()
    assert store.stats().garbage == 0
    read(store, "a", IDS["a"])


def test_a_bit_flipped_after_it_was_stored_is_not_copied_on(filled):
    with filled.begin("d", [*IDS["a"], 1, 2], FINGERPRINT) as writer:
        flip(writer.partial.path, writer.partial.locate("v.0").offset + 3, 1)
        mapped._files.clear()
        with pytest.raises(DamagedStoreError):
            writer.partial.tensor("v.0")
        assert torch.equal(writer.blocks[0].tensor("v.0"), tensors(IDS["a"], 0, BLOCK)["v.0"])
