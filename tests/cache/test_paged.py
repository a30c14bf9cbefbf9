"""Layers over an engine's pages: the same selections and the same attention as over tokens in one piece."""

import math

import pytest
import torch

from keyhole.storage import PagedStorage, split_pages
from tests.layers import Layer, check_dense, slots_read
from tests.small import SELECTIVE, small

BLOCK, WIDTH = 13, 40


class PagedLayer(Layer):
    """As `Layer`, over pages whose unused slots are NaN."""

    def __init__(self, spec, **options):
        super().__init__(spec, **options)
        _, heads, _, size = self.keys.shape
        for cache in (*self.before, self.cache):
            pages = torch.full((WIDTH + 3, heads, BLOCK, 2 * size), math.nan)
            cache.storage = PagedStorage(*split_pages(pages, size, planar=True)[:2])
            cache.storage.at(torch.randperm(WIDTH + 3)[:WIDTH].int(), 0)


def both(spec, **options):
    return [kind(spec, **options) for kind in (Layer, PagedLayer)]


# shadowkv holds keys in another form.
@pytest.mark.parametrize("name", [name for name in SELECTIVE if name != "shadowkv"])
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
