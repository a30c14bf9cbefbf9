"""Layers over an engine's pages: the same selections and the same attention as over tokens in one piece."""

import math

import pytest
import torch

from keyhole.attention import Logits
from keyhole.core.budget import Budget
from keyhole.kernels import Reach
from keyhole.prefill import ChunkedPrefill, DensePrefill, SalePrefill
from keyhole.selection import Vote
from keyhole.storage import DeviceStorage, PagedStorage, split_pages
from tests.layers import Layer, check_dense, slots_read
from tests.small import SELECTIVE, small

BLOCK, WIDTH = 13, 40


def paged_storage(heads, size, dtype=torch.float32):
    pages = torch.full((WIDTH + 3, heads, BLOCK, 2 * size), math.nan, dtype=dtype)
    storage = PagedStorage(*split_pages(pages, size, planar=True)[:2])
    storage.at(torch.randperm(WIDTH + 3)[:WIDTH].int(), 0)
    return storage


class PagedLayer(Layer):
    """As `Layer`, over pages whose unused slots are NaN."""

    def __init__(self, spec, **options):
        super().__init__(spec, **options)
        _, heads, _, size = self.keys.shape
        for cache in (*self.before, self.cache):
            cache.storage = paged_storage(heads, size)


def both(spec, **options):
    return [kind(spec, **options) for kind in (Layer, PagedLayer)]


# shadowkv holds keys in another form, nosa more than keys.
@pytest.mark.parametrize("name", [name for name in SELECTIVE if name not in ("shadowkv", "nosa")])
def test_steps_read_the_same(name):
    plain, paged = both(small(name, 20), groups=3, softcap=4.0)
    for layer in (plain, paged):
        layer.append(150)
        check_dense(layer, layer.attend(150), 150)
    for _ in range(2 * BLOCK + 1):
        outs = plain.step(), paged.step()
        assert (plain.observed is None) == (paged.observed is None)
        if plain.observed is not None:
            assert slots_read(paged) == slots_read(plain)
        torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
    for layer in (plain, paged):
        layer.crop(160)
        layer.append(11)
        check_dense(layer, layer.attend(11), 11)
        layer.step()
    assert slots_read(paged) == slots_read(plain)


PREFILLS = {
    "dense": DensePrefill(),
    "chunked": ChunkedPrefill(Vote(per_head=True, scaled=True), 32, Budget(tokens=20), 2, 6),
    "sale": SalePrefill(0.05, Reach(sinks=16, window=32)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 90, 200])
@pytest.mark.parametrize("name", PREFILLS)
def test_prompts_are_computed_over_pages(name, queries, dtype):
    size, tokens, logits = 32, 200, Logits(32**-0.5)
    held, query = torch.randn(2, 1, 2, tokens, size).to(dtype), torch.randn(1, 6, queries, size).to(dtype)
    plain, paged = DeviceStorage(), paged_storage(2, size, dtype)
    for storage in (plain, paged):
        storage.append(*held)
    found, expected = (PREFILLS[name].attend(query, part, logits, None) for part in (paged, plain))
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
