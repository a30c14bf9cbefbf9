"""Keys least like the mean direction are kept."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from keyhole.retention import Kept, KeyDifference
from tests.evictions import Evicting

SPEC = "keydiff(budget=20, sinks=2, window=6)"


@pytest.mark.parametrize("seed", range(3))
def test_keys_unlike_the_mean_are_kept(seed):
    layer = Evicting(SPEC, seed=seed, batch=2, padding=[0, 9])
    layer.append(60)
    layer.attend(60)
    for row, start in enumerate([0, 9]):
        for head in range(2):
            own = layer.keys[row, head, start:].double().numpy()
            units = own / np.linalg.norm(own, axis=-1, keepdims=True)
            alike = units @ units.mean(0)
            best = sorted(range(start + 2, 54), key=lambda j, a=alike, s=start: (a[j - s], j))[:12]
            assert layer.kept()[row][head] == sorted([start, start + 1, *best, *range(54, 60)])


@pytest.mark.parametrize("power", [-80, 80])
def test_lengths_of_keys_do_not_matter(power):
    keys, kept = torch.randn(1, 2, 30, 16, generator=torch.Generator().manual_seed(0)), Kept()
    kept.append(1, 2, 30, keys.device)
    plain, scaled = (
        KeyDifference().scores(SimpleNamespace(keys=lambda given=given: given), kept)
        for given in (keys, keys * 2.0**power)
    )
    assert torch.equal(plain, scaled)
    assert plain.isfinite().all()


def test_keys_without_a_direction_are_like_no_other():
    layer = Evicting(SPEC)
    keys = torch.ones(1, 2, 60, 16)
    keys[:, :, 30] = 0.0
    layer.cache.append(keys, keys)
    layer.cache.attend(layer.draw(1, 4, 60, 16), layer.logits)
    assert all(30 in kept for kept in layer.kept()[0])
