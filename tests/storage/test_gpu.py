"""Keys and values of a model on a GPU, kept in pinned host memory or on disk."""

import pytest
import torch

from keyhole.attention import Logits
from keyhole.storage import DeviceStorage, make_storage
from tests.storage.histories import drawing

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("place", ["host", "disk"])
@pytest.mark.parametrize("cache", [0, 200_000])
def test_the_same_as_on_the_device(place, cache):
    storages = [DeviceStorage(), make_storage(place, "full", cache)]
    draw = drawing(heads=2, width=8)
    for count in (500, 1, 1, 300):
        keys, values = draw(count).cuda(), draw(count).cuda()
        for storage in storages:
            storage.append(keys, values)
        tokens = storages[0].length
        query, slots = draw(1)[:, :, 0].repeat(1, 2, 1).cuda(), torch.arange(0, tokens, 5).int().cuda()
        for _ in range(2):
            counts = torch.tensor([slots.numel(), 20]).cuda()
            parts = [storage.attend(query, slots.expand(2, -1), counts, Logits(0.4)) for storage in storages]
            torch.testing.assert_close(*parts, rtol=1e-4, atol=1e-5)
        assert all(storage.keys().is_cuda for storage in storages)
        torch.testing.assert_close(storages[1].keys(), storages[0].keys())
    assert (storages[1].lookups.hits > 0) == (cache > 0)


def test_host_memory_is_pinned_and_new_tokens_are_not_waited_for():
    storage = make_storage("host", "full")
    rows = drawing()(300).cuda()
    storage.append(rows, rows)
    assert storage.length == 300
    assert len(storage.buffer._coming) == 1
    assert storage.buffer.view().is_pinned()
    assert storage.buffer._coming == []


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_rounded_as_on_the_cpu(precision, place):
    rows = drawing(width=8)(400)
    there, here = make_storage(place, precision), make_storage("device", precision)
    there.append(rows.cuda(), rows.cuda())
    here.append(rows, rows)
    torch.testing.assert_close(there.keys().cpu(), here.keys(), rtol=1e-4, atol=1e-5)
