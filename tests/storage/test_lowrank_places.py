"""ShadowKV's values on another tier than its low-rank keys."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.attention import Logits
from keyhole.core.errors import SpecError
from keyhole.core.layout import regions
from keyhole.core.rope import PlainRope
from keyhole.methods import Recipe
from keyhole.storage import LowRankStorage, make_rows
from tests.layers import Layer, check_dense
from tests.lives import Rounded, live
from tests.storage.histories import drawing, histories, play

CPU, LOGITS = torch.device("cpu"), Logits(0.25)
PLACES = {"host": ("host",), "disk": ("disk",), "disk behind a block": ("disk", 200_000, "lru")}
PLACES["host behind a resident buffer"] = ("host", 0, "lru", torch.device("cuda"))
# Of rank 4, keys before their rotation lose little, and they are compressed from 8 tokens on.
OPTIONS = {"rank": 4, "chunk": 4, "outliers": 1}


def twins(*place):
    """A storage with its values on a place, and one with all on the device."""
    rope = PlainRope()
    return (
        LowRankStorage(rope, **OPTIONS, values=make_rows(*place)),
        LowRankStorage(rope, **OPTIONS),
    )


def read(storage, length, seed):
    """A step: settle, then attend to the window and to some slots."""
    random = torch.Generator().manual_seed(seed)
    parts = regions(length, (0, min(3, length - 1)), 2, 5, CPU)
    storage.settle(parts)
    query = torch.randn(2, 6, 6, generator=random)
    slots = torch.randint(length, (2, 3, 9), generator=random).sort().values.int()
    counts = torch.randint(10, (2, 3), generator=random).int()
    return (
        storage.attend(query, parts.always, parts.always_counts, LOGITS),
        storage.attend(query, slots, counts, LOGITS),
    )


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@settings(max_examples=12)
@given(histories, st.integers(0, 99))
def test_any_history_reads_as_on_the_device(place, history, seed):
    pair = twins(*place)

    def both(action):
        return lambda argument: [getattr(storage, action)(argument) for storage in pair]

    def append(rows):
        for storage in pair:
            storage.append(rows, rows[..., :5] + 1)

    draw = drawing(seed, width=6)
    for plain in play(history, append, both("crop"), both("reorder"), draw):
        assert [storage.length for storage in pair] == [plain.shape[2]] * 2
        if not plain.shape[2]:
            continue
        assert torch.equal(pair[0].values(), plain[..., :5] + 1)
        torch.testing.assert_close(*(read(storage, plain.shape[2], seed) for storage in pair))
        assert torch.equal(pair[0].keys(), pair[1].keys())
        assert pair[0].token_bytes == pair[1].token_bytes


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_state_goes_from_tier_to_tier(place):
    there, here = twins(*place)
    rows = drawing(width=6)(200)
    there.append(rows, rows)
    read(there, 200, 0)
    here.restore(there.state())
    back = twins(*place)[0]
    back.restore(here.state())
    assert torch.equal(back.values(), rows)
    assert torch.equal(back.keys(), there.keys())
    torch.testing.assert_close(read(back, 200, 1), read(there, 200, 1))


def test_bytes_are_told_by_tier():
    for place in ("host", "disk"):
        there, here = twins(place)
        rows = drawing(width=6)(200)
        for storage in (there, here):
            storage.append(rows, rows)
            read(storage, 200, 0)
        moved = here.footprint.device - there.footprint.device
        assert moved >= rows.nbytes
        assert getattr(there.footprint, place) >= rows.nbytes
        assert sum(here.footprint[1:]) == 0


def test_rows_on_disk_go_with_the_storage():
    there, _ = twins("disk")
    rows = drawing(width=6)(200)
    there.append(rows, rows)
    extent = weakref.ref(there._values.buffer._file._extent)
    del there
    gc.collect()
    assert extent() is None


@pytest.mark.parametrize(
    "place", ["place=host", "place=disk", "place=disk, block_cache=400000, block_eviction=lru"]
)
def test_a_method_that_loses_nothing_is_dense(place):
    spec = f"shadowkv(mass=1.0, floor=100000, window=5, chunk=4, rank=32, {place})"
    layer = Layer(spec, batch=2, padding=[0, 13])
    layer.append(300)
    for _ in range(3):
        layer.append(1)
        check_dense(layer, layer.attend())
        assert layer.observed is not None


@pytest.mark.parametrize("place", ["host", "disk"])
def test_a_long_life(place):
    live(
        f"shadowkv(rank=8, chunk=4, outliers=3, budget=9, sinks=3, window=5, dense_below=0, place={place})",
        Rounded,
    )


def test_resident_values_are_counted():
    layer = Layer(
        "shadowkv(budget=9, rank=8, chunk=4, dense_below=0, window=5, place=disk, block_cache=400000)"
    )
    layer.append(400)
    for _ in range(4):
        layer.append(1)
        layer.attend()
    assert layer.cache.usage.hits > 0


@pytest.mark.parametrize("keys", ["int8", "int4"])
def test_keys_of_few_bits_are_refused_with_the_way_out(keys):
    with pytest.raises(SpecError, match=f"kv_dtype={keys}.*smaller rank"):
        Recipe.parse(f"shadowkv(kv_dtype={keys})")
