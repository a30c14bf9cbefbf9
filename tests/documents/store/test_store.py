"""Documents are added once, found by content, shared, named, removed."""

import os
import stat
import threading
import time

import pytest
import torch

from keyhole.core.errors import QuotaError, StoreError, UnknownDocumentError
from keyhole.documents.store import BLOCK, Store
from tests.documents.store.synthetic import FINGERPRINT, add, check, read, tensors, tokens


def files(store):
    return {
        path
        for kind in ("blocks", "indexes", "notes", "states")
        for path in (store.path / kind).rglob("*.safetensors")
    }


@pytest.mark.parametrize("count", [1, 31, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 100])
def test_a_document_is_read_as_it_was_added(store, count):
    ids = tokens(1, count)
    add(store, "a", ids, method="pqcache", model="m", source="a.txt")
    read(store, "a", ids)
    found = store.document("a")
    assert found.finished
    assert (found.stored, found.hits, found.method, found.model, found.source) == (
        count,
        1,
        "pqcache",
        "m",
        "a.txt",
    )
    assert found.seconds == -(-count // BLOCK)
    assert found.nbytes == sum(path.stat().st_size for path in files(store))
    assert store.verify().clean


def test_another_process_finds_it(store):
    ids = tokens(1, 300)
    add(store, "a", ids)
    read(Store(store.path), "a", ids)


def test_documents_that_begin_alike_share_blocks(store):
    shared = 2 * BLOCK
    first, second = (tokens(seed, 3 * BLOCK + 7, shared=shared) for seed in (1, 2))
    assert add(store, "a", first) == 4
    assert add(store, "b", second) == 2
    for name, ids in (("a", first), ("b", second)):
        read(store, name, ids)
    assert len(files(store)) == 6
    a, b = store.documents()
    assert a.shared == b.shared > 0
    stats = store.stats()
    assert stats.unshared - stats.entries == a.shared
    store.remove("a")
    assert len(files(store)) == 4
    read(store, "b", second)
    assert store.document("b").shared == 0


def test_the_same_content_under_another_name_is_not_read_again(store):
    ids = tokens(1, BLOCK + 3)
    add(store, "a", ids)
    assert add(store, "b", ids) == 0
    assert len(files(store)) == 2
    store.remove("a")
    read(store, "b", ids)


def test_another_fingerprint_shares_nothing(store):
    ids = tokens(1, BLOCK)
    add(store, "a", ids)
    with store.begin("b", ids, "another model") as writer:
        assert writer.position == 0
    assert store.match(ids, "another model").length == 0


def test_interrupted_adding_goes_on(store):
    ids = tokens(1, 4 * BLOCK + 5)
    add(store, "a", ids, until=2)
    found = store.document("a")
    assert (found.finished, found.stored) == (False, 2 * BLOCK)
    with pytest.raises(UnknownDocumentError, match=r"512 of 1,029 tokens"):
        store.open("a")
    assert store.gc().files == 0
    assert add(store, "a", found.tokens) == 3
    read(store, "a", ids)


def test_an_earlier_document_of_the_name_stays_until_the_new_one_is_finished(store):
    old, new = tokens(1, BLOCK + 9), tokens(2, 2 * BLOCK)
    add(store, "a", old)
    add(store, "a", new, until=1)
    read(store, "a", old)
    assert [each.finished for each in store.documents()] == [True, False]
    add(store, "a", new)
    read(store, "a", new)
    assert len(store.documents()) == 1
    assert len(files(store)) == 2


def test_a_partial_block_is_copied_when_it_goes_on(store):
    ids = tokens(1, BLOCK + 200)
    add(store, "a", ids[: BLOCK + 100])
    with store.begin("b", ids, FINGERPRINT) as writer:
        assert (writer.position, writer.partial_length) == (BLOCK, 100)
        held = writer.partial.tensor("k.0")
        assert held.shape[1] == 100
        made = tensors(ids, BLOCK, BLOCK + 200)
        writer.append(made, seconds=1)
        assert writer.partial is None
        writer.finish()
    assert [len(block.tokens) for block in store.match(ids, FINGERPRINT).blocks] == [BLOCK, 200]
    read(store, "a", ids[: BLOCK + 100])


def test_the_longest_stored_beginning_is_matched(store):
    ids = tokens(1, 2 * BLOCK + 50)
    add(store, "a", ids)
    longer = [*ids, 1, 2, 3]
    with store.match(longer, FINGERPRINT) as found:
        assert found.length == len(ids)
        assert found.partial is None
        check(found.blocks, ids)
    for length in (1, BLOCK - 1, BLOCK, BLOCK + 30, 2 * BLOCK + 20):
        changed = ids.copy()
        changed[length] += 1
        with store.match(changed, FINGERPRINT) as found:
            assert found.length == length
            assert len(found.blocks) == length // BLOCK
            assert (found.partial is None) == (length % BLOCK == 0)
    assert store.match(ids[:10], FINGERPRINT).length == 10


def test_an_index_lies_behind_its_document_and_is_replaced_by_another_version(store):
    ids = tokens(1, BLOCK + 1)
    with store.begin("a", ids, FINGERPRINT) as writer:
        with pytest.raises(StoreError, match="0 are stored"):
            writer.put_index("pq", "1", {"codes": torch.zeros(3)}, seconds=1)
        for start in (0, BLOCK):
            writer.append(tensors(ids, start, min(start + BLOCK, len(ids))), seconds=1)
        writer.put_index("pq", "1", {"codes": torch.ones(3)}, seconds=5, facts={"bits": 8})
        writer.finish()
    with store.open("a") as opened:
        assert opened.index("pq", "2") is None
        assert opened.index("pq", "1").facts == {"bits": 8}
        store.put_index(opened, "pq", "2", {"codes": torch.full((3,), 2.0)}, seconds=1)
        store.put_index(opened, "quest", "2", {"boxes": torch.ones(3)}, seconds=1)
        assert opened.index("pq", "2").tensor("codes").tolist() == [2, 2, 2]
    with store.open("a") as opened:
        assert opened.indexes.keys() == {("pq", "2"), ("quest", "2")}
        assert store.document("a").seconds == 4
    store.remove("a")
    assert files(store) == set()


def test_a_note_stays_as_long_as_the_end_of_its_document(store):
    ids = tokens(1, BLOCK + 1)
    with store.begin("a", ids, FINGERPRINT) as writer:
        for start in (0, BLOCK):
            writer.append(tensors(ids, start, min(start + BLOCK, len(ids))), seconds=1)
        writer.put_index("form", "1", {"text": torch.ones(3)}, seconds=None, facts={"chat": True})
        writer.finish()
    add(store, "b", [*ids[:BLOCK], 1])
    with store.open("a") as opened:
        assert opened.index("form", "1").facts == {"chat": True}
    assert store.gc().files == 0
    store.remove("a")
    assert len(files(store)) == 2
    assert store.verify().clean


def test_an_index_others_may_read_is_left(store):
    add(store, "a", tokens(1, 9))
    with store.open("a") as first, store.open("a") as second:
        store.put_index(first, "pq", "1", {"codes": torch.ones(3)}, seconds=1)
        store.put_index(second, "pq", "2", {"codes": torch.ones(3)}, seconds=1)
        assert first.index("pq", "1").tensor("codes").sum() == 3


def test_a_whole_state_replaces_the_earlier_one_and_goes_on(store):
    ids = tokens(1, 1000)

    def state(count):
        return {"kept": torch.arange(count, dtype=torch.float32)}

    with store.begin("a", ids, FINGERPRINT, whole=True) as writer:
        assert writer.state is None
        writer.put_state(300, state(300), seconds=3)
        writer.put_state(600, state(600), seconds=3)
        with pytest.raises(StoreError, match="position from 601 to 1000"):
            writer.put_state(600, state(600), seconds=6)
    assert len(files(store)) == 1
    with store.begin("a", ids, FINGERPRINT, whole=True) as writer:
        assert writer.position == 600
        assert writer.state.tensor("kept").sum() == state(600)["kept"].sum()
        with pytest.raises(StoreError, match="whole state"):
            writer.append(state(3), seconds=1)
        writer.put_state(1000, state(1000), seconds=4, facts={"heads": [1, 2]})
        writer.finish()
    with store.open("a") as opened:
        assert opened.blocks == ()
        assert opened.state.facts == {"heads": [1, 2]}
        assert len(opened.state.tensor("kept")) == 1000
    with store.begin("b", ids, FINGERPRINT, whole=True) as writer:
        assert writer.position == 1000
        writer.finish()
    assert len(files(store)) == 1
    assert store.document("b").seconds == 10


def test_blocks_and_states_of_the_same_tokens_are_two_things(store):
    ids = tokens(1, 100)
    add(store, "a", ids)
    with store.begin("a", ids, FINGERPRINT, whole=True) as writer:
        assert writer.position == 0


def test_unknown_names_are_answered_with_near_ones(store):
    with pytest.raises(UnknownDocumentError, match="the store is empty"):
        store.document("report")
    add(store, "report-2025", tokens(1, 5))
    for ask in (store.open, store.document, store.remove, lambda name: store.change(name, pinned=True)):
        with pytest.raises(UnknownDocumentError, match="'report-2024'; did you mean 'report-2025'"):
            ask("report-2024")


def test_what_is_in_use_outlives_its_name(store):
    ids = tokens(1, BLOCK + 1)
    add(store, "a", ids)
    with store.open("a") as opened, store.match(ids, FINGERPRINT):
        assert store.remove("a") == 0
        assert store.stats().leased > 0
        assert store.gc().files == 0
        check(opened.blocks, ids)
        assert add(store, "b", ids) == 0
    store.remove("b")
    assert files(store) == set()


def test_a_lease_ends_with_its_object(store):
    add(store, "a", tokens(1, 5))
    store.open("a")
    store.remove("a")
    assert files(store) == set()


def test_ttl_and_pins(store):
    for name, options in (
        ("a", {"ttl": 0}),
        ("b", {"ttl": 1000}),
        ("c", {"ttl": 0, "pinned": True}),
        ("d", {}),
    ):
        add(store, name, tokens(ord(name), 300), **options)
    time.sleep(0.01)
    assert store.gc().documents == ("a",)
    assert store.change("c", pinned=False).ttl == 0
    assert store.change("d", ttl=5).ttl == 5
    assert store.change("d", ttl=None, pinned=True).ttl is None
    time.sleep(0.01)
    assert store.gc().documents == ("c",)
    assert [each.name for each in store.documents()] == ["b", "d"]
    assert store.document("d").pinned
    add(store, "d", store.document("d").tokens)
    assert store.document("d").pinned
    for ttl in (-3, float("nan")):
        with pytest.raises(ValueError, match="ttl"):
            store.change("d", ttl=ttl)


def test_gc_removes_what_is_not_usable(store):
    for name in "abc":
        add(store, name, tokens(ord(name), 300), model=name)
    found = store.gc(lambda document: document.model != "b")
    assert found.documents == ("b",)
    assert found.files == 2
    assert [each.name for each in store.documents()] == ["a", "c"]


def test_gc_removes_leftovers(store):
    add(store, "a", tokens(1, 300))
    lost = store.path / "blocks" / "zz" / "lost.safetensors"
    partial = store.path / "blocks" / "zz" / ".lost.partial-x.safetensors"
    lost.parent.mkdir()
    for path in (lost, partial):
        path.write_bytes(bytes(5000))
    assert store.verify().garbage == store.stats().garbage == 16384
    found = store.gc()
    assert (found.files, found.nbytes) == (2, 16384)
    assert not lost.parent.exists()
    read(store, "a")


def test_rights_are_the_owners_alone(root):
    root.mkdir(mode=0o755)
    root.chmod(0o755)
    store = Store(root)
    add(store, "a", tokens(1, 5))
    for path in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_somebody_elses_directory_is_refused(root, monkeypatch):
    Store(root)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ValueError, match="belongs to another user"):
        Store(root)


def test_bad_arguments_are_refused(root, store):
    file = root.parent / "file"
    file.touch()
    with pytest.raises(ValueError, match="is a file"):
        Store(file)
    with pytest.raises(ValueError, match="1,048,576"):
        Store(root, 1000)
    for name in ("", "a\nb"):
        with pytest.raises(ValueError, match="control characters"):
            store.begin(name, [1], "f")
    with store.begin("a", [1, 2], "f") as writer:
        for seconds in (-1, float("inf")):
            with pytest.raises(ValueError, match="seconds"):
                writer.append({"k": torch.zeros(2)}, seconds=seconds)
        with pytest.raises(StoreError, match="0 are stored"):
            writer.finish()
        writer.append({"k": torch.zeros(2)}, seconds=0)
        with pytest.raises(StoreError, match="no token after 2"):
            writer.append({"k": torch.zeros(2)}, seconds=0)


def test_removing_waits_for_nobody_who_adds(store):
    with store.begin("a", [1, 2], "f"), pytest.raises(StoreError, match="'a' is being added"):
        store.remove("a")
    store.gc()
    assert store.documents() == []


def test_the_second_who_adds_the_same_waits_and_finds_it(store):
    ids = tokens(1, 3 * BLOCK)
    seen = []
    with store.begin("a", ids, FINGERPRINT) as first:
        first.append(tensors(ids, 0, BLOCK), seconds=1)
        found = []

        def second():
            found.append(add(store, "b", ids, waiting=lambda done, total: seen.append((done, total))))

        thread = threading.Thread(target=second)
        thread.start()
        while not seen:
            time.sleep(0.01)
        for start in (BLOCK, 2 * BLOCK):
            first.append(tensors(ids, start, start + BLOCK), seconds=1)
        first.finish()
    thread.join()
    assert found == [0]
    assert seen[0] == (BLOCK, 3 * BLOCK)
    read(store, "b", ids)


def test_what_can_never_fit_is_refused_before_it_is_read(root):
    store = Store(root, 4 << 20)
    store.admit(3 << 20)
    with pytest.raises(QuotaError, match=r"4,194,304 bytes.*larger quota"):
        store.admit(4 << 20)
    add(store, "a", tokens(1, 4 * BLOCK), width=64, pinned=True)
    with pytest.raises(QuotaError, match="pinned or in use"):
        store.admit(3 << 20)
    store.change("a", pinned=False)
    store.admit(3 << 20)
    with store.open("a"), pytest.raises(QuotaError):
        store.admit(3 << 20)
