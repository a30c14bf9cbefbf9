"""SnapKV's scores against whole matrices of weights, and what they lead to."""

import numpy as np
import pytest
import torch

from tests.attention.test_columns import matrix
from tests.evictions import Evicting

WINDOW = 6


def oracle(query, keys, scale, kernel):
    """The most in a neighbourhood of the attention that the last queries pay, summed over a group's heads."""
    sums = sum(matrix(q[-WINDOW:], keys, scale, None, None, 0).sum(0) for q in query)
    before = sums[:-WINDOW]
    reach = kernel // 2
    return np.array([before[max(j - reach, 0) : j + reach + 1].max() for j in range(len(before))])


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_by_the_attention_of_the_newest(kernel, seed):
    layer = Evicting(f"snapkv(budget=20, sinks=2, window={WINDOW}, kernel={kernel})", seed=seed, batch=2)
    layer.append(60)
    layer.attend(60)
    kept = layer.kept()
    for row in range(2):
        for head in range(2):
            query = layer.query[row, 2 * head : 2 * head + 2].double().numpy()
            worth = oracle(query, layer.keys[row, head].double().numpy(), layer.logits.scale, kernel)
            best = sorted(range(2, 60 - WINDOW), key=lambda j: (-worth[j], j))[: 20 - 2 - WINDOW]
            assert kept[row][head] == sorted([0, 1, *best, *range(60 - WINDOW, 60)])


def test_heads_keep_different_tokens_and_equal_heads_the_same():
    layer = Evicting("snapkv(budget=20, sinks=2, window=6)")
    layer.append(60)
    layer.attend(60)
    first, second = layer.kept()[0]
    assert first != second
    twin = Evicting("snapkv(budget=20, sinks=2, window=6)")
    twin.cache.append(layer.keys[:, [0, 0]], layer.values[:, [0, 0]])
    twin.cache.attend(layer.query[:, [0, 1, 0, 1]], layer.logits)
    assert torch.equal(*twin.cache.kept.positions[0])


def test_a_window_longer_than_a_piece_remembers_the_piece_before():
    whole, pieces = (Evicting("snapkv(budget=20, sinks=2, window=6, prompt=whole)") for _ in range(2))
    whole.append(60)
    whole.attend(60)
    for start, stop in ((0, 50), (50, 55), (55, 57), (57, 60)):
        part = slice(start, stop)
        pieces.cache.append(whole.keys[:, :, part], whole.values[:, :, part])
        pieces.cache.attend(whole.query[:, :, part], whole.logits)
    for layer in (whole, pieces):
        layer.cache.append(whole.keys[:, :, :1], whole.values[:, :, :1])
    assert torch.equal(whole.cache.kept.positions, pieces.cache.kept.positions)


def test_an_even_kernel_has_no_middle():
    with pytest.raises(ValueError, match="kernel=4"):
        Evicting("snapkv(kernel=4)")


@pytest.mark.parametrize("budget", ["mass=0.9", "budget=0", "budget=1.5"])
def test_budgets_that_cannot_be_kept(budget):
    with pytest.raises(ValueError, match=r"0\.9|0|1\.5"):
        Evicting(f"snapkv({budget})")
