"""Keys of small norm are kept."""

import numpy as np
import pytest
import torch

from tests.evictions import Evicting


@pytest.mark.parametrize("seed", range(3))
def test_the_shortest_keys_are_kept(seed):
    layer = Evicting("knorm(budget=20, sinks=2, window=6)", seed=seed, batch=2, padding=[0, 9])
    layer.append(60)
    layer.attend(60)
    for row, start in enumerate([0, 9]):
        for head in range(2):
            norms = np.linalg.norm(layer.keys[row, head].double().numpy(), axis=-1)
            best = sorted(range(start + 2, 54), key=lambda j, norms=norms: (norms[j], j))[:12]
            assert layer.kept()[row][head] == sorted([start, start + 1, *best, *range(54, 60)])


def test_rotation_does_not_change_what_is_kept():
    plain, turned = (Evicting("knorm(budget=20, sinks=2, window=6)") for _ in range(2))
    keys, query = plain.draw(1, 2, 60, 16), plain.draw(1, 4, 60, 16)
    from keyhole.core.rope import PlainRope

    rotated = PlainRope().rotate(keys, torch.arange(60).view(1, -1))
    for layer, given in ((plain, keys), (turned, rotated)):
        layer.cache.append(given, given)
        layer.cache.attend(query, layer.logits)
    assert torch.equal(plain.cache.kept.positions, turned.cache.kept.positions)
