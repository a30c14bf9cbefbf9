"""Keys and values of a model on a GPU, kept in pinned host memory or on disk."""

import pytest
import torch

import keyhole
from keyhole.attention import Logits
from keyhole.kernels.backend.rows import at
from keyhole.storage import Chosen, DeviceStorage, PinnedStorage, ResidentRows, make_storage
from keyhole.storage.tiers.buffer import HostBuffer
from tests.storage.histories import drawing
from tests.storage.limited import WIDE
from tests.tiny import fresh_model, prompt

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA = torch.device("cuda")
TOKENS, LAYERS = 16_000, 8
LONG = WIDE | {"num_hidden_layers": LAYERS, "max_position_embeddings": TOKENS + 64}
LONG_BYTES = TOKENS * LAYERS * 8 * 2 * 64 * 4
CAP = 400 << 20  # bytes beyond the model's


@pytest.mark.parametrize("device", [None, CUDA])
@pytest.mark.parametrize("place", ["host", "disk"])
@pytest.mark.parametrize("cache", [0, 200_000])
def test_the_same_as_on_the_device(place, cache, device):
    storages = [DeviceStorage(), make_storage(place, "auto", cache, device=device)]
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
    keeps = cache > 0 or isinstance(storages[1], PinnedStorage)
    assert (storages[1].lookups.hits > 0) == keeps


def test_host_memory_is_pinned_and_new_tokens_are_not_waited_for():
    buffer, rows = HostBuffer(), drawing()(300).cuda()
    buffer.append(rows)
    torch.cuda._sleep(1 << 30)
    buffer.append(rows[:, :, :100])
    assert not torch.cuda.current_stream().query(), "the copy was waited for"
    assert buffer.view().is_pinned()
    assert torch.equal(buffer.view(), torch.cat([rows, rows[:, :, :100]], 2).cpu())
    buffer.reorder(torch.tensor([1, 0]))
    assert buffer.view().is_pinned()


def test_a_read_behind_a_resident_buffer_is_captured():
    rows, plain = ResidentRows(), drawing()(2000).cuda()
    rows.append(plain)
    slots, counts = torch.zeros(2, 3, 50, dtype=torch.int32, device=CUDA), torch.full((2, 3), 50).cuda()
    for _ in range(2):
        rows.bring(Chosen(slots, counts))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pool, places = rows.bring(Chosen(slots, counts))
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        slots.copy_(torch.rand(2, 3, 2000, generator=random).argsort(-1)[..., :50])
        graph.replay()
        assert torch.equal(at(pool, places), at(plain, slots))


def tokens_of(model, place):
    method = f"pqcache(budget=256, sinks=4, window=32, place={place})"
    with keyhole.attach(model, method) as attached:
        out = model.generate(
            prompt(TOKENS).cuda(), max_new_tokens=16, do_sample=False, prefill_chunk_size=1024
        )
    return out[0, TOKENS:].tolist(), attached


def test_a_context_larger_than_a_cap_on_the_memory_of_the_device():
    """Served from the host to the end, with the tokens of a run without a cap."""
    model = fresh_model("llama", **LONG).cuda()
    wanted, attached = tokens_of(model, "device")
    assert attached.footprint.device > LONG_BYTES > CAP
    del attached
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + CAP
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        found, attached = tokens_of(model, "host")
        assert found == wanted
        assert attached.footprint.host >= LONG_BYTES
        assert attached.usage.hits > attached.usage.misses > 0
        with pytest.raises(torch.OutOfMemoryError):
            tokens_of(model, "device")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_rounded_as_on_the_cpu(precision, place):
    rows = drawing(width=8)(400)
    there, here = make_storage(place, precision), make_storage("device", precision)
    there.append(rows.cuda(), rows.cuda())
    here.append(rows, rows)
    torch.testing.assert_close(there.keys().cpu(), here.keys(), rtol=1e-4, atol=1e-5)
