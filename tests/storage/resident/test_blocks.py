"""Resident blocks change what is read where, never what comes out; which ones stay follows the policy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.attention import Logits
from keyhole.storage import make_storage
from keyhole.storage.chosen import Chosen
from keyhole.storage.resident.blocks import BLOCK, ResidentBlocks
from keyhole.storage.tiers.buffer import GrowingBuffer
from tests.storage.histories import drawing

BLOCK_BYTES = BLOCK * 4  # of one row and head, of one number a token
ADMITTED = 32


class Model:
    """The policy in plain lists: which blocks are resident after each read."""

    def __init__(self, places, eviction):
        self.places, self.eviction = places, eviction
        self.blocks = {}  # resident block -> [times read, last read]
        self.time = self.hits = self.misses = 0

    def read(self, tokens, full):
        self.time += 1
        reads = [token // BLOCK for token in tokens if token // BLOCK < full]
        self.hits += sum(block in self.blocks for block in reads)
        self.misses += sum(block not in self.blocks for block in reads)
        for block in set(reads) & set(self.blocks):
            self.blocks[block][0] += 1
            self.blocks[block][1] = self.time
        missed = sorted(set(reads) - set(self.blocks), key=lambda block: (-reads.count(block), block))
        for block in missed[:ADMITTED]:
            if len(self.blocks) == self.places:
                first = {"lfu": 0, "lru": 1}[self.eviction]
                stale = [b for b in self.blocks if self.blocks[b][1] < self.time]
                if not stale:
                    return
                del self.blocks[min(stale, key=lambda b: (*self.blocks[b][first:], b))]
            self.blocks[block] = [1, self.time]


class Cached:
    """Blocks over a buffer that holds each token's number."""

    def __init__(self, tokens, places, eviction):
        self.buffer = GrowingBuffer()
        self.buffer.append(torch.arange(tokens, dtype=torch.float32).view(1, 1, -1, 1))
        self.resident = ResidentBlocks(places * BLOCK_BYTES, eviction, 1)

    def read(self, tokens):
        slots = torch.tensor([[tokens]], dtype=torch.int32)
        chosen = Chosen(slots, torch.tensor([[len(tokens)]]))
        found, missed = self.resident.look_up(chosen, self.buffer.length)
        held = missed.slots[0, 0, : missed.counts[0, 0]].tolist()
        if found.counts.any():
            places = found.slots[0, 0, : found.counts[0, 0]]
            held += self.resident.rows[0, 0, places, 0].int().tolist()
        assert sorted(held) == sorted(tokens), "each token once, and itself"
        self.resident.admit(self.buffer, torch.device("cpu"))
        return len(tokens) - int(missed.counts)

    @property
    def blocks(self):
        return {block for block, place in enumerate(self.resident._place_of) if place >= 0}


@pytest.mark.parametrize("eviction", ["lfu", "lru"])
@settings(max_examples=60)
@given(
    st.integers(1, 6),
    st.lists(st.lists(st.integers(0, 10 * BLOCK + 50), min_size=1, max_size=12), min_size=1, max_size=25),
)
def test_against_the_policy_in_plain_lists(eviction, places, reads):
    cached, model = Cached(10 * BLOCK + 51, places, eviction), Model(places, eviction)
    for tokens in reads:
        cached.read(tokens)
        model.read(tokens, 10)
        assert len(cached.blocks) == len(model.blocks) <= places
        assert cached.resident.lookups[:2] == (model.hits, model.misses)
        assert cached.blocks == set(model.blocks)


def test_least_frequent_and_least_recent_differ():
    for eviction, goes in (("lfu", 1), ("lru", 0)):
        cached = Cached(4 * BLOCK, 2, eviction)
        for block in (0, 0, 0, 1, 2):
            cached.read([block * BLOCK])
        assert cached.blocks == {0, 1, 2} - {goes}


def test_more_blocks_than_are_fetched_at_once():
    cached = Cached(50 * BLOCK, 50, "lfu")
    cached.read([block * BLOCK for block in range(50)] + [40 * BLOCK + 1])
    assert cached.blocks == {*range(31), 40}


def test_the_block_that_is_not_full_stays_out():
    """A block copied before it was full would serve what is not there."""
    cached = Cached(2 * BLOCK + 5, 4, "lfu")
    for _ in range(3):
        cached.read([2 * BLOCK + 4, 5])
    assert cached.blocks == {0}
    assert cached.resident.lookups[:2] == (2, 1)
    cached.buffer.append(torch.arange(2 * BLOCK + 5, 3 * BLOCK).float().view(1, 1, -1, 1))
    for expected in (1, 2):
        assert cached.read([3 * BLOCK - 1, 5]) == expected


def test_filling_is_not_counted_nor_fetched():
    resident = ResidentBlocks(4 * BLOCK_BYTES, "lfu", 1)
    slots = torch.tensor([[[0, BLOCK, 2 * BLOCK]]])
    _, missed = resident.look_up(Chosen(slots, torch.tensor([[1]])), 3 * BLOCK)
    assert missed.counts.tolist() == [[1]]
    assert resident.lookups[:2] == (0, 1)


def test_too_small_for_a_block_keeps_none():
    cached = Cached(3 * BLOCK, 1, "lfu")
    cached.resident = ResidentBlocks(BLOCK_BYTES - 1, "lfu", 1)
    for _ in range(3):
        assert cached.read([1, BLOCK, BLOCK + 1]) == 0
    assert cached.resident.lookups[:2] == (0, 9)
    assert cached.resident.nbytes == 0
    assert cached.resident.rows is None


@pytest.mark.parametrize("precision", ["auto", "int8"])
@pytest.mark.parametrize("place", ["host", "disk"])
def test_a_larger_batch_may_be_too_large_for_a_block(place, precision):
    """What fits for one row does not for three: requests go on without blocks, and with them again."""
    storage, hits = make_storage(place, precision, 28_000), []
    for batch in (1, 3, 1):
        rows = drawing(batch=batch, width=8)(500)
        storage.append(rows, rows)
        slots = torch.arange(0, 300).int().expand(batch, -1)
        before = storage.lookups.hits
        parts = [
            storage.attend(torch.ones(batch, 3, 8), slots, torch.full((batch,), 300), Logits(1.0))
            for _ in range(3)
        ]
        torch.testing.assert_close(parts[2].out, parts[0].out)
        hits.append(storage.lookups.hits - before)
        storage.crop(0)
    assert hits[0] > 0
    assert hits[1] == 0
    assert hits[2] > 0


@pytest.mark.parametrize("eviction", ["lfu", "lru"])
@pytest.mark.parametrize("precision", ["auto", "int8", "int4"])
@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(["append", "read", "read", "crop", "reorder"]), max_size=25), st.integers(0, 99)
)
def test_the_same_comes_out_with_and_without(precision, eviction, events, seed):
    storages = [
        make_storage("host", precision),
        make_storage("disk", precision, 100_000, eviction),
        make_storage("host", precision, 30_000, eviction),
    ]
    draw, random = drawing(seed, heads=2, width=6), torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high, (), generator=random))

    for event in ["append", *events, "read"]:
        if event == "append":
            keys, values = draw(count := number(1, 500)), draw(count)
            for storage in storages:
                storage.append(keys, values)
        elif event == "crop":
            length = number(1, storages[0].length + 1)
            for storage in storages:
                storage.crop(length)
        elif event == "reorder":
            rows = torch.randint(2, (2,), generator=random)
            for storage in storages:
                storage.reorder(rows)
        else:
            tokens, query = storages[0].length, torch.randn(2, 4, 6, generator=random)
            slots = torch.rand(2, 2, tokens, generator=random).argsort(-1)[..., :90].sort(-1).values.int()
            counts = torch.randint(0, slots.shape[-1] + 1, (2, 2), generator=random)
            parts = [storage.attend(query, slots, counts, Logits(0.5)) for storage in storages]
            for part in parts[1:]:
                torch.testing.assert_close(part, parts[0], rtol=1e-4, atol=1e-5)


def test_an_emptied_storage_takes_another_batch():
    storage = make_storage("disk", "auto", 100_000)
    for batch in (2, 3):
        rows = drawing(batch=batch, width=4)(300)
        storage.append(rows, rows)
        for _ in range(2):
            part = storage.attend(
                torch.ones(batch, 3, 4), torch.zeros(batch, 1).int(), torch.ones(batch).int(), Logits(1.0)
            )
            torch.testing.assert_close(part.out, rows[:, :, 0])
        assert storage.lookups.hits > 0
        storage.crop(0)
