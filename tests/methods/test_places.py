"""The options that say where keys and values live, and in which form."""

import pytest

from keyhole.core.errors import SpecError
from keyhole.methods import PQCache, Recipe
from keyhole.storage import DeviceStorage


@pytest.mark.parametrize("place", ["device", "host", "disk"])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8", "int4", "int3", "int2"])
def test_bare_words_are_read(place, kv_dtype):
    spec = f"pqcache(place={place}, kv_dtype={kv_dtype})"
    stage = Recipe.parse(spec).stages[0]
    assert (stage.place, stage.kv_dtype) == (place, kv_dtype)
    assert Recipe.parse(str(stage)).stages == (stage,)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0, 0),
        (123, 123),
        ("123", 123),
        ("64MB", 64_000_000),
        ("64 MB", 64_000_000),
        ("1.5GiB", 3 << 29),
        ("2K", 2000),
        ("2KiB", 2048),
        ("7B", 7),
    ],
)
def test_sizes_of_the_cache(given, expected):
    method = PQCache(place="disk", block_cache=given)
    assert method.block_cache == expected
    assert Recipe.parse(str(method)).stages == (method,)


@pytest.mark.parametrize("cache", [-1, "-1", "64 megs", "", "MB", True, 1.5, None, "1e6"])
def test_sizes_that_are_none(cache):
    with pytest.raises(SpecError, match="bytes"):
        PQCache(place="disk", block_cache=cache)


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ("place=moon", "device, host, disk"),
        ("kv_dtype=int5", "auto, int8, int4, int3, int2"),
        ("block_eviction=fifo", "lfu, lru"),
        ("place=1", "device, host, disk"),
    ],
)
def test_other_words_are_refused_with_those_allowed(option, allowed):
    with pytest.raises(SpecError, match=allowed):
        Recipe.parse(f"oracle({option})")


def test_a_cache_needs_something_slower_behind_it():
    with pytest.raises(SpecError, match="place=host or place=disk"):
        PQCache(block_cache="64MB")


def test_the_plain_answer_is_left_to_other_stages():
    assert Recipe.parse("pqcache(place=device, kv_dtype=auto)").stages[0].storage(3) is None
    assert all(isinstance(layer.storage, DeviceStorage) for layer in Recipe.parse("pqcache").layers(2))


def test_the_cache_is_shared_out_to_the_layers():
    layers = Recipe.parse("oracle(place=disk, block_cache=1000)").layers(3)
    assert [layer.storage.resident._limit for layer in layers] == [334] * 3
    assert len({id(layer.storage.resident) for layer in layers}) == 3


def test_a_cache_too_small_for_a_block_serves_no_read():
    import torch

    from keyhole.attention import Logits

    layer = Recipe.parse("oracle(budget=4, sinks=1, window=4, place=host, block_cache=1000)").layers(1)[0]
    rows = torch.randn(1, 2, 300, 8)
    layer.append(rows, rows)
    for _ in range(2):
        layer.attend(torch.randn(1, 2, 1, 8), Logits(1.0))
    assert layer.storage.lookups.hits == 0
    assert layer.storage.lookups.misses > 0
    assert layer.storage.footprint.device == 0
