"""Attention that keys get from many queries, against whole matrices of weights."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.attention import Logits, column_sums
from keyhole.attention import columns as module


def matrix(query, keys, scale, softcap, sink, filling):
    """Causal softmax weights `[Q, N]` of one head in float64; queries of filling pay nothing."""
    queries, tokens = len(query), len(keys)
    weights = np.zeros((queries, tokens))
    for i in range(queries):
        own = tokens - queries + i
        if own < filling:
            continue
        logits = np.array([keys[j] @ query[i] * scale for j in range(filling, own + 1)])
        if softcap is not None:
            logits = softcap * np.tanh(logits / softcap)
        whole = logits if sink is None else np.append(logits, sink)
        whole = np.exp(whole - whole.max())
        weights[i, filling : own + 1] = (whole / whole.sum())[: len(logits)]
    return weights


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(0, 20),
    st.sampled_from([None, 2.0]),
    st.booleans(),
    st.lists(st.integers(0, 25), min_size=2, max_size=2),
    st.integers(0, 99),
)
def test_sums_of_whole_matrices(heads, groups, queries, more, softcap, sinks, filling, seed):
    draw = torch.Generator().manual_seed(seed)
    tokens = queries + more
    query = torch.randn(2, heads * groups, queries, 8, generator=draw)
    keys = torch.randn(2, heads, tokens, 8, generator=draw)
    sink = torch.randn(heads * groups, generator=draw) if sinks else None
    unused = torch.tensor(filling).clamp(max=tokens).view(2, 1).expand(2, heads)
    found = column_sums(query, keys, Logits(0.4, softcap, sink), filling=unused)
    for row in range(2):
        for head in range(heads):
            expected = sum(
                matrix(
                    query[row, h].double().numpy(),
                    keys[row, head].double().numpy(),
                    0.4,
                    softcap,
                    None if sink is None else float(sink[h]),
                    int(unused[row, head]),
                ).sum(0)
                for h in range(head * groups, (head + 1) * groups)
            )
            np.testing.assert_allclose(found[row, head], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_the_size_of_blocks_does_not_matter(size, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    query, keys = torch.randn(1, 4, 33, 8, generator=draw), torch.randn(1, 2, 40, 8, generator=draw)
    whole = column_sums(query, keys, Logits(0.4))
    monkeypatch.setattr(module, "_WEIGHTS_PER_BLOCK", size * 4 * 40)
    torch.testing.assert_close(column_sums(query, keys, Logits(0.4)), whole)


def test_each_query_pays_one():
    query, keys = torch.randn(1, 6, 50, 8), torch.randn(1, 2, 50, 8)
    torch.testing.assert_close(column_sums(query, keys, Logits(0.4)).sum(-1), torch.full((1, 2), 150.0))


def test_more_queries_than_tokens():
    """Those of a prompt whose first tokens were padding and are gone."""
    query, keys = torch.randn(1, 2, 9, 8), torch.randn(1, 2, 4, 8)
    expected = column_sums(query[:, :, 5:], keys, Logits(0.4))
    torch.testing.assert_close(column_sums(query, keys, Logits(0.4)), expected)
