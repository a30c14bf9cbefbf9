"""Dropped tokens that go into kept ones, in every storage that can keep."""

import numpy as np
import pytest
import torch

from keyhole.core.layout import packed_slots
from keyhole.storage import Chosen, DeviceStorage, Merge, NewValues, PooledStorage, make_storage
from tests.oracles import array

MADE = {
    "device": DeviceStorage,
    "pooled": PooledStorage,
    "host": lambda: make_storage("host", "auto"),
    "disk": lambda: make_storage("disk", "auto"),
    "int8": lambda: make_storage("device", "int8"),
}


def means(rows, targets, weights):
    """By the definition, of one head."""
    merged = rows.copy()
    for slot in range(len(rows)):
        sources = [s for s in range(len(rows)) if targets[s] == slot]
        if len(sources) > 1:
            merged[slot] = sum(weights[s] * rows[s] for s in sources) / sum(weights[s] for s in sources)
    return merged


@pytest.mark.parametrize("keys_too", [False, True])
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("ragged", [False, True])
def test_kept_tokens_are_means(make, keys_too, ragged):
    draw = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 3, 40, size, generator=draw) for size in (16, 8))
    stays = torch.rand(2, 3, 40, generator=draw) > 0.5
    stays[..., -1] = True
    if not ragged:
        order = stays.float().argsort(dim=-1, stable=True)
        stays = torch.zeros_like(stays).scatter(-1, order[..., -20:], True)
        stays[..., -1] = True
        stays[..., 0] |= stays.sum(-1) < 20
    kept = Chosen(*packed_slots(stays))
    merge = Merge.into_previous(kept, 40, keys=keys_too)
    merge = merge._replace(weights=torch.rand(2, 3, 40, generator=draw) + 0.1)
    storage = make()
    storage.append(keys, values)
    held = storage.keys().clone(), storage.values().clone()
    storage.keep(kept, merge)
    for row in range(2):
        for head in range(3):
            slots = stays[row, head].nonzero().flatten().numpy()
            told = array(merge.targets[row, head]), array(merge.weights[row, head])
            merged = [means(array(part[row, head]), *told) for part in held]
            expected = merged[0] if keys_too else array(held[0][row, head]), merged[1]
            for found, rows in zip((storage.keys(), storage.values()), expected, strict=True):
                np.testing.assert_allclose(found[row, head, -len(slots) :], rows[slots], rtol=1e-4, atol=1e-4)


def test_into_the_last_kept_one_before():
    kept = Chosen(torch.tensor([[[1, 4, 6]]], dtype=torch.int32), torch.tensor([[3]], dtype=torch.int32))
    merge = Merge.into_previous(kept, 7)
    assert merge.targets.tolist() == [[[-1, 1, 1, 1, 4, 4, 6]]]
    assert merge.takes.tolist() == [[[False, True, False, False, True, False, False]]]


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_nothing_to_merge_changes_nothing(make):
    rows = torch.randn(1, 2, 30, 16)
    kept = Chosen(
        torch.arange(30, dtype=torch.int32).expand(1, 2, -1), torch.full((1, 2), 30, dtype=torch.int32)
    )
    one, other = make(), make()
    for storage, into in ((one, None), (other, Merge.into_previous(kept, 30, keys=True))):
        storage.append(rows, rows)
        storage.keep(kept, into)
    assert torch.equal(one.keys(), other.keys())
    assert torch.equal(one.values(), other.values())


@pytest.mark.parametrize("make", [make for name, make in MADE.items() if name != "int8"])
def test_new_values(make):
    """Some kept tokens get other values; keys, and the values of others, stay."""
    draw = torch.Generator().manual_seed(0)
    keys, values, new = (torch.randn(2, 3, 40, size, generator=draw) for size in (16, 8, 8))
    takes = torch.rand(2, 3, 40, generator=draw) > 0.5
    stays = torch.zeros(2, 3, 40, dtype=torch.bool)
    stays[..., ::2] = stays[..., -1] = True
    storage = make()
    storage.append(keys, values)
    storage.keep(Chosen(*packed_slots(stays)), NewValues(new, takes))
    expected = torch.where(takes.unsqueeze(-1), new, values)
    assert torch.equal(storage.keys(), keys[stays].view(2, 3, -1, 16))
    assert torch.equal(storage.values(), expected[stays].view(2, 3, -1, 8))


def test_a_retention_that_merges(monkeypatch):
    """The seam of a layer: what a retention says about dropped tokens is done."""
    from keyhole.retention import Retention
    from tests.evictions import Evicting

    plain = Evicting("snapkv(budget=20, sinks=2, window=6)")
    monkeypatch.setattr(
        Retention, "merge", lambda _, _storage, kept, chosen: Merge.into_previous(chosen, kept.slots)
    )
    layer = Evicting("snapkv(budget=20, sinks=2, window=6)")
    keys, values, query = plain.draw(1, 2, 60, 16), plain.draw(1, 2, 60, 16), plain.draw(1, 4, 60, 16)
    for each in (plain, layer):
        each.cache.append(keys, values)
        with pytest.MonkeyPatch.context() as patch:
            if each is plain:
                patch.setattr(Retention, "merge", lambda *_: None)
            each.cache.attend(query, each.logits)
    assert torch.equal(plain.cache.kept.positions, layer.cache.kept.positions)
    assert torch.equal(plain.cache.storage.keys(), layer.cache.storage.keys())
    torch.testing.assert_close(
        layer.cache.storage.values()[0, 0, 1],
        values[0, 0, 1 : int(layer.cache.kept.positions[0, 0, 2])].mean(0),
    )
