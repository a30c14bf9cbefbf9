"""Resident slots hold what a step reads, fetch only what it did not find, and move nothing."""

import numpy as np
import pytest
import torch

from keyhole.attention import Logits
from keyhole.core.layout import regions
from keyhole.storage import make_storage
from keyhole.storage.chosen import Chosen
from keyhole.storage.resident.slots import ResidentSlots
from keyhole.storage.tiers.buffer import GrowingBuffer
from keyhole.storage.tiers.disk import DiskBuffer

BATCH, HEADS, GROUP, WIDTH = 2, 3, 4, 5
ROW_BYTES = GROUP * WIDTH * 4
CPU = torch.device("cpu")


class Fetched:
    """Slots over a buffer of random rows, and what each head has, in plain sets."""

    def __init__(self, blocks, places=0, buffer=None):
        self.buffer = GrowingBuffer() if buffer is None else buffer
        self.rows = torch.randn(BATCH, HEADS, blocks, GROUP * WIDTH)
        self.buffer.append(self.rows)
        self.slots = ResidentSlots(places * BATCH * HEADS * ROW_BYTES, GROUP)

    def read(self, wanted):
        """`wanted [B, H, S]` tokens; what lies at the places that are said."""
        chosen = Chosen(wanted.int(), torch.full((BATCH, HEADS), wanted.shape[-1]))
        rows, found = self.slots.bring(chosen, self.buffer, CPU)
        tokens = rows.unflatten(-1, (GROUP, WIDTH)).flatten(2, 3)
        given = tokens.gather(2, found.slots.long().unsqueeze(-1).expand(-1, -1, -1, WIDTH))
        held = self.rows.unflatten(-1, (GROUP, WIDTH)).flatten(2, 3)
        assert torch.equal(given, held.gather(2, wanted.unsqueeze(-1).expand(-1, -1, -1, WIDTH)))

    def resident(self):
        """The blocks of each head by slot."""
        return self.slots._block_at.copy()


def tokens_of(generator, blocks, count):
    """Two tokens of `count` random blocks for each head."""
    chosen = [torch.randperm(blocks, generator=generator)[:count].sort().values for _ in range(BATCH * HEADS)]
    return torch.cat([torch.stack(chosen) * GROUP, torch.stack(chosen) * GROUP + 3], 1).view(BATCH, HEADS, -1)


@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("spare", [0, 3])
def test_the_difference_is_fetched_and_nothing_moves(spare, disk):
    generator = torch.Generator().manual_seed(spare)
    held = Fetched(40, 9 + spare, DiskBuffer(2) if disk else None)
    before, fetched = None, 0
    for _ in range(60):
        held.slots.begin()
        wanted = tokens_of(generator, 40, 9)
        held.read(wanted)
        now, sets = held.resident(), [set(row.tolist()) for row in (wanted // GROUP).flatten(0, 1)]
        for row, blocks in enumerate(sets):
            assert blocks <= set(now[row].tolist())
            if spare == 0:
                assert blocks == set(now[row].tolist())
            if before is not None:
                stayed = [slot for slot, block in enumerate(before[row]) if block in blocks]
                assert (now[row][stayed] == before[row][stayed]).all()
        missed = sum(len(b - set(() if before is None else before[row])) for row, b in enumerate(sets))
        assert held.slots.lookups.fetched - fetched == missed * ROW_BYTES
        before, fetched = now, held.slots.lookups.fetched
    assert 0 < held.slots.lookups.misses < held.slots.lookups.hits + held.slots.lookups.misses


def test_the_one_read_longest_ago_makes_room():
    held = Fetched(10, 2)
    order = [0, 1, 0, 2, 0, 1]
    for block in order:
        held.slots.begin()
        held.read(torch.full((BATCH, HEADS, 1), block * GROUP))
    assert held.resident().tolist() == [[0, 1]] * BATCH * HEADS
    assert held.slots.lookups[:3] == (2 * 6, 4 * 6, 4 * 6 * ROW_BYTES)


def test_locality_is_counted_by_step():
    held, generator, before, expected = Fetched(40), torch.Generator().manual_seed(1), None, []
    for _ in range(12):
        held.slots.begin()
        wanted = tokens_of(generator, 40, 11)
        held.read(wanted[..., :11])
        held.read(wanted[..., 11:])  # the same blocks again: reads of one step count together
        sets = [set(row.tolist()) for row in (wanted // GROUP).flatten(0, 1)]
        if before is not None:
            expected.append(np.mean([len(a & b) / 11 for a, b in zip(sets, before, strict=True)]))
        before = sets
    held.slots.begin()
    np.testing.assert_allclose(held.slots.locality.gammas, expected)
    assert held.slots.lookups.again / held.slots.lookups.blocks == pytest.approx(np.mean(expected))


def test_slots_that_hold_too_little_are_refused():
    held = Fetched(40, 3)
    with pytest.raises(ValueError, match=r"hold 3 blocks of 4 tokens.*a step reads 5; give block_cache= at"):
        held.read(tokens_of(torch.Generator().manual_seed(0), 40, 5))


class Pair:
    """A storage on the device, and one with slots before another place, which get the same tokens."""

    def __init__(self, place, kv_dtype="auto"):
        self.random = torch.Generator().manual_seed(0)
        self.plain = make_storage("device", kv_dtype)
        self.slotted = make_storage(place, kv_dtype, slot_tokens=64)
        self.both = (self.plain, self.slotted)

    def append(self, tokens):
        keys, values = (torch.randn(2, 3, tokens, size, generator=self.random) for size in (16, 8))
        for storage in self.both:
            storage.append(keys, values)

    def check(self):
        tokens = self.plain.length
        order = torch.rand(2, 3, tokens, generator=self.random).argsort(-1)
        chosen = order[..., :50].sort(-1).values.int()
        counts = torch.randint(0, 51, (2, 3), generator=self.random).int()
        query = torch.randn(2, 6, 16, generator=self.random)
        self.slotted.settle(regions(tokens, (0, 0), 4, 4, CPU))
        found, expected = (storage.attend(query, chosen, counts, Logits(0.3)) for storage in self.both)
        torch.testing.assert_close(found.out, expected.out)
        torch.testing.assert_close(found.lse, expected.lse)
        for read in (lambda storage: storage.keys(), lambda storage: storage.values(70)):
            assert torch.equal(*map(read, self.both))


@pytest.mark.parametrize("place", ["host", "disk"])
def test_a_storage_attends_as_one_on_the_device(place):
    """Appends over the ends of blocks, crops within them, beams, a restart."""
    pair = Pair(place)
    pair.append(300)
    for turn in range(140):
        pair.append(1)
        if turn % 9 == 0 or pair.plain.length % 64 in (63, 0, 1):
            pair.check()
    for length in (399, 256, 255):
        assert pair.slotted.crops_exactly(length)
        for storage in pair.both:
            storage.crop(length)
        pair.check()
        pair.append(70)
        pair.check()
    for storage in pair.both:
        storage.reorder(torch.tensor([1, 1]))
    pair.check()
    fresh = make_storage(place, "auto", slot_tokens=64)
    fresh.restore(pair.slotted.state())
    assert torch.equal(fresh.keys(), pair.plain.keys())


@pytest.mark.parametrize("place", ["host", "disk"])
def test_slots_hold_packed_rows(place):
    pair = Pair(place, "int8")
    pair.append(300)
    for _ in range(5):
        pair.append(29)
        pair.check()


def test_a_block_that_the_newest_tokens_filled_is_not_fetched():
    storage = make_storage("host", "auto", slot_tokens=64)
    slots = torch.arange(0, 64, dtype=torch.int32).expand(1, 1, -1)
    storage.append(torch.randn(1, 1, 64 * 3, 4), torch.randn(1, 1, 64 * 3, 4))
    for _ in range(130):
        storage.settle(regions(storage.length, (0,), 4, 4, CPU))
        newest = torch.arange(storage.length - 80, storage.length, dtype=torch.int32).expand(1, 1, -1)
        for part in (slots, newest):
            storage.attend(torch.randn(1, 1, 4), part, torch.full((1, 1), part.shape[-1]), Logits(1.0))
        storage.append(torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4))
    # The first block and, at the first step, that before the newest tokens; those that came later were here.
    assert storage.lookups.fetched <= 2 * 64 * 8 * 4 + 2 * 64 * 8 * 4
