"""The quota holds whatever is done, and what goes first is what the formula says."""

import os
import random
from contextlib import ExitStack, suppress

import pytest
import torch

from keyhole.core.errors import QuotaError
from keyhole.documents.store import BLOCK, Store
from keyhole.documents.store.keys import index_key
from tests.documents.store.model import Model, Text
from tests.documents.store.synthetic import FINGERPRINT, add, check, read, tensors, tokens

QUOTA = 3 << 19


def used(path):
    """All that there is, in whole pages."""
    sizes = [os.stat(path).st_size]
    for root, directories, files in os.walk(path):
        sizes += [os.stat(os.path.join(root, name)).st_size for name in (*directories, *files)]
    return sum(-(-size // 4096) * 4096 for size in sizes)


def keys(store):
    return {path.stem for path in store.path.rglob("*.safetensors")}


class Life:
    """Random operations on a store and on a model of it."""

    def __init__(self, root, seed):
        self.root, self.random = root, random.Random(seed)
        self.store, self.model = Store(root, QUOTA), Model()
        self.open = []  # contexts that are in use, as the model lists them

    def step(self):
        operations = {
            self.add: 8, self.ask: 6, self.index: 2, self.remove: 1, self.pin: 2, self.hold: 2,
            self.let_go: 3, self.gc: 1, self.again: 1,
        }  # fmt: skip
        self.random.choices(list(operations), list(operations.values()))[0]()
        assert used(self.root) <= QUOTA
        assert set(self.model.items) == keys(self.store)
        found = sorted((each.name, each.stored, each.pinned) for each in self.store.documents())
        assert found == sorted((name, text.stored, text.pinned) for name, text in self.model.texts)

    def add(self):
        model, draw = self.model, self.random
        name, shared = f"d{draw.randrange(24)}", draw.choice([0, BLOCK, 2 * BLOCK])
        ids = tokens(draw.randrange(60), shared + draw.randrange(1, 4 * BLOCK), shared=shared)
        known = Text(tuple(ids.tolist()), 0)
        text = next((each for own, each in model.texts if (own, each.ids) == (name, known.ids)), known)
        stored = [key for key in text.keys if key in model.items]
        before = keys(self.store)
        model.in_use.append(stored)
        try:
            writer = self.store.begin(name, ids, FINGERPRINT)
        except QuotaError:
            model.in_use.pop()
            self.model.touch(stored)
            assert keys(self.store) == before
            return
        with writer:
            self.model.touch(stored)
            model.in_use[-1] = [*stored, *([writer.partial.key] if writer.partial else [])]
            text.stored = sum(model.items[key].tokens for key in stored)
            if text is known:
                model.texts.append([name, text])
            model.written = text
            model.evicted(before - keys(self.store))
            self.append(writer, text, draw.choice([1, 6, 6, 6]))
            model.in_use.pop()
            if text.finished:
                writer.finish()
                model.texts = [each for each in model.texts if each[0] != name or each[1] is text]
                self.swept()
        model.written = None
        if not text.stored:
            self.gc()

    def append(self, writer, text, most):
        while writer.next[0] < writer.total and most:
            most -= 1
            before, (start, stop) = keys(self.store), writer.next
            key, path, seconds = text.keys[start // BLOCK], text.path, self.random.choice([0.5, 1, 7, 30])
            try:
                entry = writer.append(tensors(text.ids, start, stop), seconds=seconds)
            except QuotaError:
                assert keys(self.store) <= before
                self.model.evicted(before - keys(self.store))
                kept = self.model.kept()
                assert sum(self.model.items[key].nbytes for key in kept) > QUOTA // 4
                return
            self.model.evicted(before - keys(self.store))
            parent = path[-1] if path else ""
            self.model.put(key, parent, entry.nbytes, seconds, stop - start)
            text.stored = stop
            self.model.in_use[-1] = text.path

    def swept(self):
        for key in self.model.garbage():
            del self.model.items[key]

    def finished(self):
        return sorted((name, each) for name, each in self.model.texts if each.finished)

    def ask(self):
        for name, text in self.picked():
            read(self.store, name, text.ids)
            self.model.opened(text.path)

    def picked(self):
        """A finished document, or none where there is none."""
        names = sorted({name for name, each in self.model.texts if each.finished})
        if not names:
            return []
        name = self.random.choice(names)
        return [(name, next(each for own, each in self.model.texts if own == name and each.finished))]

    def index(self):
        model = self.model
        for name, text in self.picked():
            method, count = self.random.choice(["pq", "quest", "note"]), self.random.randrange(1, 20_000)
            seconds = None if method == "note" else 3.0
            key, before = index_key(text.path[-1], method, "1"), keys(self.store)
            with self.store.open(name) as opened:
                model.opened(text.path)
                model.in_use.append(text.path)
                with suppress(QuotaError):
                    self.store.put_index(opened, method, "1", {"c": torch.zeros(count)}, seconds=seconds)
                after = keys(self.store)
                model.evicted(before - after)
                for new in after - before:
                    nbytes = opened.index(method, "1").nbytes
                    assert new == key
                    model.put(key, text.path[-1], nbytes, seconds or 0.0, 0, method == "note")
            model.in_use.pop()

    def remove(self):
        if self.model.texts:
            name = self.random.choice(self.model.texts)[0]
            self.store.remove(name)
            self.model.texts = [each for each in self.model.texts if each[0] != name]
            self.swept()

    def pin(self):
        for name, text in self.picked():
            text.pinned = not text.pinned and self.random.random() < 0.4
            self.store.change(name, pinned=text.pinned)

    def hold(self):
        for name, text in self.picked() if len(self.open) < 2 else ():
            self.model.opened(text.path)
            self.open.append((self.store.open(name), text.path, text.ids))
            self.model.in_use.append(text.path)

    def let_go(self):
        if self.open:
            opened, path, ids = self.open.pop(self.random.randrange(len(self.open)))
            check(opened.blocks, ids)
            opened.close()
            self.model.in_use.remove(path)

    def gc(self):
        self.store.gc()
        self.model.texts = [each for each in self.model.texts if each[1].stored]
        self.swept()

    def again(self):
        assert self.store.verify().clean
        self.store = Store(self.root, QUOTA)


def test_the_quota_holds_and_the_order_is_that_of_a_model(root):
    life = Life(root, 1)
    for _ in range(100):
        life.step()
    assert life.model.evictions > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 6))
def test_500_operations(root, seed):
    life = Life(root, seed)
    for _ in range(500):
        life.step()
    assert life.model.evictions > 200


def test_nothing_is_evicted_for_what_does_not_fit(root):
    store = Store(root, QUOTA)
    for name in "abc":
        add(store, name, tokens(ord(name), 2 * BLOCK))
    before = keys(store)
    with store.begin("large", tokens(9, BLOCK), FINGERPRINT) as writer:
        with pytest.raises(QuotaError, match="are missing"):
            writer.append({"k": torch.zeros(QUOTA // 4)}, seconds=1)
        assert keys(store) == before
    assert used(root) <= QUOTA


def test_a_smaller_quota_is_reached_with_the_next_addition(root):
    store = Store(root, 16 << 20)
    for seed in range(10):
        add(store, f"d{seed}", tokens(seed, 8 * BLOCK))
    assert used(root) > QUOTA
    small = Store(root, QUOTA)
    add(small, "new", tokens(99, BLOCK))
    assert used(root) <= QUOTA
    read(small, "new")


def test_expired_documents_go_before_any_other(root):
    store = Store(root, QUOTA)
    add(store, "old", tokens(1, 4 * BLOCK), seconds=1e6, ttl=0)
    seed = 2
    while "old" in (names := [each.name for each in store.documents()]):
        add(store, f"d{seed}", tokens(seed, 2 * BLOCK), seconds=1.0)
        seed += 1
    assert len(names) == seed - 2


def test_a_pinned_document_outlives_what_is_worth_more(root):
    store = Store(root, QUOTA)
    with ExitStack() as held:
        add(store, "pinned", tokens(1, 2 * BLOCK), seconds=0, pinned=True)
        add(store, "leased", tokens(2, 2 * BLOCK), seconds=0)
        held.enter_context(store.open("leased"))
        for seed in range(3, 30):
            add(store, f"d{seed}", tokens(seed, 3 * BLOCK), seconds=1e3)
        for name in ("pinned", "leased"):
            read(store, name)


def test_20_documents_with_shared_beginnings(root):
    store, shared = Store(root, 64 << 20), 6 * BLOCK
    for seed in range(20):
        add(store, f"d{seed}", tokens(seed, 8 * BLOCK, shared=shared))
    stats = store.stats()
    block = stats.entries // (6 + 20 * 2)
    assert stats.blocks == 6 + 20 * 2
    assert stats.unshared == 20 * 8 * block
