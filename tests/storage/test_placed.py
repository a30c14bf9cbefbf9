"""Every place: attention over chosen slots is exact, state goes round, bytes are counted where they are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.attention import Logits
from keyhole.storage import DeviceStorage, Footprint, make_storage
from keyhole.storage.chosen import Chosen
from tests import oracles
from tests.layers import Layer
from tests.lives import live_briefly
from tests.storage.histories import drawing, histories, play

MADE = {
    "host": lambda: make_storage("host", "auto"),
    "disk": lambda: make_storage("disk", "auto"),
    "disk-lru": lambda: make_storage("disk", "auto", 50_000, "lru"),
    "host-hot": lambda: make_storage("host", "auto", device=torch.device("cuda")),
    "host-lfu": lambda: make_storage("host", "auto", 50_000, "lfu"),
}
SPECS = [
    "place=host",
    "place=disk",
    "place=disk, block_cache=200000",
    "place=host, block_cache=200000, block_eviction=lru",
]
every_place = pytest.mark.parametrize("make", MADE.values(), ids=MADE)
every_spec = pytest.mark.parametrize("spec", SPECS)


def filled(make, count=9, batch=2, dtype=torch.float32):
    storage = make()
    keys, values = (drawing(i, batch=batch, heads=2, width=8, dtype=dtype)(count) for i in range(2))
    storage.append(keys, values)
    return storage, keys, values


@every_place
@settings(max_examples=30)
@given(histories)
def test_any_history_equals_plain_tensors(make, history):
    storage = make()
    for plain in play(
        history, lambda t: storage.append(t, t[..., :3]), storage.crop, storage.reorder, drawing()
    ):
        assert storage.length == plain.shape[2]
        assert torch.equal(storage.keys(), plain)
        assert torch.equal(storage.values(), plain[..., :3])
        assert torch.equal(storage.keys(storage.length // 2), plain[:, :, storage.length // 2 :])


@every_place
@settings(max_examples=30)
@given(st.sampled_from([1, 31, 128, 300, 1000]), st.booleans(), st.integers(0, 99))
def test_attention_over_chosen_slots(make, count, shared, seed):
    storage, keys, values = filled(make, count)
    random = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 6, 8, generator=random)
    for _ in range(3):
        heads = () if shared else (2,)
        slots = torch.rand(2, *heads, count, generator=random).argsort(-1).int()
        counts = torch.randint(0, count + 1, (2, *heads), generator=random)
        part = storage.attend(query, slots, counts, Logits(0.4, softcap=2.0))
        for row in range(2):
            read = [(slots[row] if shared else slots[row, head]).tolist() for head in range(2)]
            read = [r[: counts[row] if shared else counts[row, head]] for head, r in enumerate(read)]
            held = (oracles.array(tensor[row]) for tensor in (query, keys, values))
            out, lse = oracles.attention(*held, read, scale=0.4, softcap=2.0)
            np.testing.assert_allclose(part.out[row], out, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(part.lse[row], lse, rtol=1e-4, atol=1e-5)


@every_place
def test_bf16_as_on_the_device(make):
    storage, keys, values = filled(make, 300, dtype=torch.bfloat16)
    device = DeviceStorage()
    device.append(keys, values)
    query, slots = torch.randn(2, 6, 8).bfloat16(), torch.arange(0, 300, 7).int().expand(2, -1)
    parts = [s.attend(query, slots, torch.tensor([20, 43]), Logits(0.4)) for s in (storage, device)]
    assert parts[0].out.dtype == torch.bfloat16
    torch.testing.assert_close(*parts)
    assert storage.token_bytes == device.token_bytes


@every_place
def test_state_goes_round_and_over_to_the_device(make):
    storage, keys, values = filled(make, 300)
    for other in (filled(make, 30, batch=5)[0], DeviceStorage()):
        other.restore(storage.state())
        assert other.length == 300
        assert torch.equal(other.keys(), keys)
        assert torch.equal(other.values(), values)
    empty = make()
    assert empty.state() == {}
    storage.restore({})
    assert storage.length == 0


def test_bytes_are_counted_where_they_are():
    for place in ("host", "disk"):
        storage, keys, values = filled(lambda place=place: make_storage(place, "auto"), 300)
        held = storage.footprint
        assert getattr(held, place) >= keys.nbytes + values.nbytes
        assert sum(held) == getattr(held, place)
    assert make_storage("disk", "auto").footprint == Footprint()


def test_the_cache_counts_as_memory_of_the_device():
    storage, _, _ = filled(MADE["disk-lru"], 300)
    assert storage.footprint.device == 0
    storage.attend(torch.ones(2, 2, 8), torch.zeros(2, 1).int(), torch.ones(2).int(), Logits(1.0))
    assert 0 < storage.footprint.device <= 50_000


def test_host_and_disk_are_read_in_place():
    """Reading everything must not copy it: it may be larger than memory."""
    for place in ("host", "disk"):
        storage, _, _ = filled(lambda place=place: make_storage(place, "auto"), 300)
        assert storage.keys().data_ptr() == storage.keys().data_ptr()


@every_spec
@pytest.mark.parametrize("method", ["oracle", "pqcache(subspaces=4, bits=3"])
def test_steps_of_a_layer(spec, method):
    method = method if "(" in method else method + "("
    comma = "" if method.endswith("(") else ", "
    layer = Layer(
        f"{method}{comma}budget=20, sinks=2, window=6, {spec})", batch=2, padding=[0, 70], value_size=24
    )
    live_briefly(layer)
    assert layer.cache.usage.steps > 20
    assert (layer.cache.usage.hits > 0) == ("cache" in spec)


@every_spec
def test_a_layer_in_and_out_of_inference_mode(spec):
    with torch.inference_mode():
        layer = Layer(f"oracle(budget=20, sinks=2, window=6, {spec})")
        layer.append(300)
        for _ in range(3):
            layer.step()
    for _ in range(3):
        layer.step()
    layer.crop(250)
    layer.step()


def test_filling_is_slot_zero_wherever_the_chosen_lie():
    """A head that chose fewer is filled up; what it chose elsewhere must not be asked of this place."""
    chosen = Chosen(torch.tensor([[[1, 2, 3], [4, 900, -5]]]), torch.tensor([[3, 2]]))
    for wanted in (chosen.slots < 500, chosen.slots != 2):
        found = chosen.where(wanted)
        for slots, count, own in zip(found.slots[0], found.counts[0], (0, 1), strict=True):
            meant = chosen.slots[0, own, : int(chosen.counts[0, own])]
            expected = meant[wanted[0, own, : len(meant)]].tolist()
            assert slots.tolist() == expected + [0] * (found.slots.shape[-1] - len(expected))
            assert int(count) == len(expected)
