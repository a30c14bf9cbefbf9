"""Tokens ranked by a few numbers of their keys, against the formulae of Loki and Double Sparsity."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.core.budget import Budget
from keyhole.selection import NarrowSelector
from keyhole.selection.quantisers.narrowing import heaviest, principal
from tests import oracles
from tests.lives import live
from tests.steps import competing, make_step


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slanted(*shape, seed=0):
    """Keys whose channels hang together, far from the origin."""
    mix = draw(shape[1], shape[-1], shape[-1], seed=seed + 1)
    return draw(*shape, seed=seed) @ mix + draw(shape[1], 1, shape[-1], seed=seed + 2)


def loki_axes(keys, width):
    """keys [N, D] -> [D, W]: eigenvectors of the covariance with the largest eigenvalues."""
    centred = keys - keys.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(keys))
    return vectors[:, np.argsort(-values)[:width]]


def heavy_channels(keys, queries, width):
    """keys [N, D], queries [Q, D] -> the W channels of largest mean |q_j k_j| over all pairs."""
    weights = np.zeros(keys.shape[1])
    for channel in range(keys.shape[1]):
        products = np.abs(np.outer(queries[:, channel], keys[:, channel])) if len(queries) else None
        weights[channel] = np.abs(keys[:, channel]).mean() if products is None else products.mean()
    return np.argsort(-weights, kind="stable")[:width]


def rotated(keys, queries, kind, width):
    """The part of keys that the index keeps, `[N, D]`, and what it leaves out of their mean."""
    if kind == "loki":
        axes = loki_axes(keys, width)
    else:
        axes = np.eye(keys.shape[1])[:, heavy_channels(keys, queries, width)]
    return axes @ axes.T, keys.mean(0) - axes @ axes.T @ keys.mean(0)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["loki", "doublesparsity"]),
    st.sampled_from([13, 31, 63, 100]),
    st.integers(1, 4),
    st.integers(1, 70),
    st.integers(1, 9),
    st.integers(0, 12),
    st.data(),
)
def test_the_best_tokens_by_narrow_keys_are_read(kind, tokens, group, budget, width, shown, data):
    first = [data.draw(st.integers(0, tokens - 12)) for _ in range(2)]
    last = data.draw(st.integers(max(first) + 1, tokens))
    keys, query = slanted(2, 2, tokens, 8, seed=tokens), draw(2, 2 * group, 8, seed=budget)
    queries, anchor = 3 * draw(2, 2 * group, shown, 8, seed=7), draw(2, 2 * group, seed=1)
    cut = data.draw(st.integers(max(first) + 12, tokens))  # fewer keys have no axes of their own
    selector = NarrowSelector({"loki": principal, "doublesparsity": heaviest}[kind], width, 4)
    if shown:
        selector.see(queries, 2, tokens)
        selector._mass_control.shown = []
    selector.build(keys[:, :, :cut], competing(first, cut, cut))
    selector.append(keys[:, :, cut:])
    step = make_step(query, keys, first, last, anchor, Budget(tokens=budget))
    selection, logits = selector.select(step), selector.token_logits(step)
    for row in range(2):
        middle = np.arange(first[row], last)
        for head in range(2):
            own = slice(head * group, (head + 1) * group)
            fitted = oracles.array(keys[row, head, first[row] : cut])
            asked = oracles.array(queries[row, own]).reshape(-1, 8)
            kept, rest = rotated(fitted, asked, kind, width)
            expected = (oracles.array(keys[row, head]) @ kept + rest) @ oracles.array(query[row, own]).T
            expected = expected.T[:, :last] * 8**-0.5
            np.testing.assert_allclose(logits[row, head], expected, rtol=1e-3, atol=2e-3)
            always = oracles.array(anchor[row, own]).reshape(-1, 1)
            shares, fixed = oracles.group_shares(expected[:, middle], always, 1)
            best = sorted(shares[0])[::-1][:budget]
            found = selection.slots[row, head, : selection.counts[row, head]].tolist()
            assert len(set(found)) == len(found) == min(budget, len(middle))
            assert set(found) <= set(middle.tolist())
            read = sorted(shares[0][[n - first[row] for n in found]])[::-1]
            np.testing.assert_allclose(read, best, rtol=2e-2, atol=1e-6)
            assert float(selection.mass[row, head]) == pytest.approx(fixed[0] + sum(best), abs=5e-3)


@pytest.mark.parametrize("narrowing", [principal, heaviest])
def test_all_numbers_of_a_key_rank_as_the_key(narrowing):
    keys, query = slanted(1, 2, 60, 8), draw(1, 4, 8, seed=1)
    selector = NarrowSelector(narrowing, 99, 4)
    selector.build(keys, competing([3], 60, 60))
    step = make_step(query, keys, [3], 55, torch.zeros(1, 4), Budget(tokens=9))
    exact = oracles.exact_logits(
        oracles.array(query[0]), oracles.array(keys[0, :, :55]), scale=8**-0.5
    ).reshape(2, 2, 55)
    np.testing.assert_allclose(selector.token_logits(step)[0], exact, rtol=1e-3, atol=1e-3)
    assert selector.state()["narrow"].shape[-1] == 8


def test_keys_of_low_rank_are_ranked_exactly():
    """What Loki is for: two axes tell all about keys that lie in a plane."""
    keys = draw(1, 1, 80, 2) @ draw(2, 16, seed=1)
    query = draw(1, 1, 16, seed=2)
    selector = NarrowSelector(principal, 2, 4)
    selector.build(keys, competing([0], 80, 80))
    step = make_step(query, keys, [0], 80, torch.zeros(1, 1), Budget(tokens=7))
    best = (keys[0, 0] @ query[0, 0]).topk(7).indices.sort().values
    assert selector.select(step).slots[0, 0].tolist() == best.tolist()


def test_channels_are_chosen_by_queries_too():
    """A channel of large keys that no query asks for is left out; without queries it is the first one."""
    keys, queries = draw(1, 1, 50, 4), draw(1, 1, 20, 4, seed=1)
    keys[..., 3] *= 9
    queries[..., 3] = 0
    for shown, channel in ((False, 3), (True, None)):
        selector = NarrowSelector(heaviest, 1, 4)
        if shown:
            selector.see(queries, 1, 50)
        selector.build(keys, competing([0], 50, 50))
        chosen = int(selector.state()["projection"][0, 0].argmax())
        assert chosen == channel if channel is not None else chosen != 3


def test_queries_of_padding_do_not_choose():
    keys, queries = draw(2, 1, 40, 4), draw(2, 1, 20, 4, seed=1)
    queries[1, :, :15, 0] = 1e4
    selectors = []
    for rows, padding in (([0, 1], (0, 35)), ([1], (35,))):
        selector = NarrowSelector(heaviest, 1, 4)
        selector.see(queries[rows], 1, 40)
        parts = competing([unused + 1 for unused in padding], 40, 40)
        object.__setattr__(parts, "padding", padding)
        selector.build(keys[rows], parts)
        selectors.append(selector.state()["projection"])
    assert torch.equal(selectors[0][1], selectors[1][0])
    wanted = (queries[1, 0, 15:].abs().mean(0) * keys[1, 0, 36:].abs().mean(0)).argmax()
    assert int(selectors[1][0, 0].argmax()) == int(wanted)


@pytest.mark.parametrize("spec", ["loki(rank=3", "doublesparsity(channels=3"])
@pytest.mark.parametrize("window", [1, 30])
def test_a_long_life(spec, window):
    live(f"{spec}, budget=9, sinks=3, window={window}, dense_below=0)", kv_heads=3, softcap=5.0)
