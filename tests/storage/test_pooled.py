"""A pool that heads share: whatever is kept of it reads as plain tensors do, and memory is given back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.attention import Logits
from keyhole.storage import Chosen, DeviceStorage, PooledStorage
from tests.storage.histories import drawing, histories, play

B, H, G, D = 2, 3, 2, 8


def filled(tokens, seed=0, dtype=torch.float32):
    draw, storage = drawing(seed, width=D, dtype=dtype), PooledStorage()
    keys, values = draw(tokens), draw(tokens)
    storage.append(keys, values)
    return storage, keys, values


@given(histories, st.integers(0, 9))
def test_any_history(history, seed):
    storage = PooledStorage()

    def append(new):
        storage.append(new, new[..., :3])

    for plain in play(history, append, storage.crop, storage.reorder, drawing(seed)):
        assert storage.length == plain.shape[2]
        if storage.length:
            assert torch.equal(storage.keys(), plain)
            assert torch.equal(storage.values(storage.length // 2), plain[:, :, storage.length // 2 :, :3])


@st.composite
def keeps(draw, tokens=40):
    kept = [[draw(st.sets(st.integers(0, tokens - 1), min_size=1)) for _ in range(H)] for _ in range(B)]
    return [[sorted(slots) for slots in row] for row in kept]


def chosen(kept):
    width = max(len(slots) for row in kept for slots in row)
    padded = [[slots + [0] * (width - len(slots)) for slots in row] for row in kept]
    counts = [[len(slots) for slots in row] for row in kept]
    return Chosen(torch.tensor(padded, dtype=torch.int32), torch.tensor(counts, dtype=torch.int32))


@given(keeps(), st.sampled_from([1, 5, 300]), st.integers(0, 9))
def test_heads_keep_their_own(kept, more, seed):
    """Then tokens come, into the rows that were freed or behind them, and attention is over what is there."""
    storage, keys, values = filled(40, seed)
    storage.keep(chosen(kept))
    draw = drawing(seed + 1, width=D)
    new_keys, new_values = draw(more), draw(more)
    storage.append(new_keys, new_values)
    query = draw(1).repeat_interleave(G, dim=1)
    out = storage.attend_all(query, Logits(0.3), None)
    width = storage.length
    for row in range(B):
        for head in range(H):
            slots = kept[row][head]
            held = torch.cat([keys[row, head, slots], new_keys[row, head]])
            read = torch.cat([values[row, head, slots], new_values[row, head]])
            filling = width - len(held)
            assert torch.equal(storage.keys()[row, head, filling:], held)
            assert torch.equal(storage.values()[row, head, filling:], read)
            for group in range(G):
                weights = (held @ query[row, head * G + group, 0] * 0.3).softmax(-1)
                torch.testing.assert_close(out[row, head * G + group, 0], weights @ read)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_beside_attention(dtype):
    storage, keys, values = filled(30, dtype=dtype)
    plain = DeviceStorage()
    plain.append(keys, values)
    query = drawing(5, heads=H * G, width=D, dtype=dtype)(1)
    logits = Logits(0.3, 2.0, torch.randn(H * G))
    found, expected = (each.weigh_all(query, logits, None) for each in (storage, plain))
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    exact = 2.0 * torch.tanh(query.unflatten(1, (H, G)).float() @ keys.float().mT.unsqueeze(2) * 0.15)
    torch.testing.assert_close(found[1], exact.view(B, H * G, 30), rtol=1e-3, atol=1e-3)


def test_a_freed_row_is_used_again():
    storage, _, _ = filled(100)
    before = storage.footprint.device
    draw, everything = drawing(3, width=D), list(range(100))
    for step in range(300):
        storage.append(draw(1), draw(1))
        storage.keep(chosen([[[s for s in [*everything, 100] if s != step % 90] for _ in range(H)]] * B))
        assert storage.length == 100
    assert storage.footprint.device <= 1.5 * before


def test_memory_falls_with_what_is_kept():
    storage, keys, _ = filled(4096)
    assert storage.footprint.device >= 2 * keys.nbytes
    storage.keep(chosen([[list(range(0, 4096, 64))] * H] * B))
    # 64 tokens, and room for 64 more.
    assert storage.footprint.device <= 2.2 * 2 * keys.nbytes / 64


def test_a_state_is_no_larger_than_what_is_kept_and_goes_round():
    storage, keys, values = filled(40)
    kept = [[[0, 5, 39], [1, 39], [39]], [[2, 3, 4, 39]] * 3]
    storage.keep(chosen(kept))
    state = storage.state()
    assert len(state["keys"]) == 3 + 2 + 1 + 12
    other = PooledStorage()
    other.restore({name: tensor.clone() for name, tensor in state.items()})
    more = drawing(7, width=D)(2)
    for each in (storage, other):
        each.append(more, more)
        for row, heads in enumerate(kept):
            for head, slots in enumerate(heads):
                assert torch.equal(each.keys()[row, head, -2 - len(slots) : -2], keys[row, head, slots])
                assert torch.equal(each.values()[row, head, -2 - len(slots) : -2], values[row, head, slots])


def test_other_storages_keep_by_being_filled_anew():
    storage, keys, _ = filled(20)
    plain = DeviceStorage()
    plain.append(keys, keys)
    kept = [[[3, 8, 19]] * H, [[0, 1, 19]] * H]
    for each in (storage, plain):
        each.keep(chosen(kept))
    assert torch.equal(storage.keys(), plain.keys())
