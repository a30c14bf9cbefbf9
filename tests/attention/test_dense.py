import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.attention import dense, dense_attention
from tests import oracles


def draw(seed, batch, kv_heads, groups, queries, count, size, value_size=None):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, kv_heads * groups, queries, size, generator=generator)
    keys = torch.randn(batch, kv_heads, count, size, generator=generator)
    values = torch.randn(batch, kv_heads, count, value_size or size, generator=generator)
    return query, keys, values


def check(query, keys, values, padding, *, scale, mask, softcap=None, sink_logits=None):
    out = dense_attention(
        query, keys, values, scale=scale, mask=mask, softcap=softcap, sink_logits=sink_logits
    )
    assert out.shape == (*query.shape[:3], values.shape[-1])
    for row, first in enumerate(padding):
        expected = oracles.causal_attention(
            *(oracles.array(tensor[row]) for tensor in (query, keys, values)),
            first=first,
            scale=scale,
            softcap=softcap,
            sink_logits=None if sink_logits is None else oracles.array(sink_logits),
        )
        real = max(first - (keys.shape[2] - query.shape[2]), 0)  # queries before are padding
        np.testing.assert_allclose(out[row, :, real:].numpy(), expected[:, real:], rtol=1e-4, atol=1e-5)


def causal(padding, queries, count):
    slots = torch.arange(count)
    position = torch.arange(count - queries, count).view(-1, 1)
    return (slots <= position) & (slots >= torch.tensor(padding).view(-1, 1, 1, 1))


@settings(max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 8),
    st.sampled_from([(1, 1), (1, 31), (1, 100), (5, 5), (3, 31), (31, 63), (2, 2)]),
    st.sampled_from([8, 24, 64, 128]),
    st.sampled_from([None, 2.0, 30.0]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_equals_the_formula(kv_heads, groups, lengths, size, softcap, with_sinks, padded, data):
    queries, count = lengths
    query, keys, values = draw(count * size + groups, 2, kv_heads, groups, queries, count, size, size // 2)
    padding = data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=2)) if padded else [0, 0]
    check(
        query,
        keys,
        values,
        padding,
        scale=size**-0.5,
        mask=causal(padding, queries, count) if padded else None,
        softcap=softcap,
        sink_logits=torch.linspace(-3, 3, kv_heads * groups) if with_sinks else None,
    )


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_one_mask_serves_all_rows(softcap):
    query, keys, values = draw(0, 3, 2, 2, 4, 9, 16)
    check(query, keys, values, [2, 2, 2], scale=0.25, mask=causal([2], 4, 9), softcap=softcap)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.0, 1.0, 2.0, -1e4])])
def test_queries_of_padding_are_finite(softcap, sinks):
    query, keys, values = draw(0, 2, 2, 2, 6, 6, 16)
    out = dense_attention(
        query, keys, values, scale=0.25, mask=causal([0, 4], 6, 6), softcap=softcap, sink_logits=sinks
    )
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("queries", [1, 3])
def test_nan_is_not_hidden(softcap, queries):
    query, keys, values = draw(0, 1, 2, 2, queries, 9, 16)
    query[:, 1, -1, 0] = torch.nan
    out = dense_attention(query, keys, values, scale=0.25, softcap=softcap, mask=causal([2], queries, 9))
    assert bool(out[:, 1, -1].isnan().all())
    assert bool(out[:, [0, 2, 3]].isfinite().all())


def test_not_causal_sees_everything():
    query, keys, values = draw(0, 1, 2, 3, 4, 9, 16)
    together = dense_attention(query, keys, values, scale=0.25, causal=False)
    alone = [dense_attention(query[:, :, i : i + 1], keys, values, scale=0.25) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone, dim=2))


def test_blocks_of_queries_change_nothing(monkeypatch):
    query, keys, values = draw(0, 2, 2, 2, 13, 31, 16)
    whole = dense_attention(query, keys, values, scale=0.25, softcap=3.0)
    monkeypatch.setattr(dense, "_LOGITS_PER_CHUNK", 2 * 4 * 31 * 5)
    torch.testing.assert_close(dense_attention(query, keys, values, scale=0.25, softcap=3.0), whole)
    mask = causal([0, 3], 13, 31)
    blocks = dense_attention(query, keys, values, scale=0.25, softcap=3.0, mask=mask)
    monkeypatch.undo()
    torch.testing.assert_close(
        blocks, dense_attention(query, keys, values, scale=0.25, softcap=3.0, mask=mask)
    )


def test_query_head_reads_its_own_kv_head():
    """Heads 0..3 read KV head 0, heads 4..7 KV head 1; a repeat in the wrong order would interleave them."""
    keys = torch.zeros(1, 2, 5, 8)
    values = torch.arange(2.0).view(1, 2, 1, 1).expand(1, 2, 5, 8)
    for queries in (1, 3):
        out = dense_attention(torch.zeros(1, 8, queries, 8), keys, values, scale=1.0)
        assert out[0, :, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_sink_logit_of_nothing_and_of_everything():
    query, keys, values = draw(0, 1, 1, 2, 1, 7, 8)
    plain = dense_attention(query, keys, values, scale=0.3)
    sinks = torch.tensor([-math.inf, 1e4])
    out = dense_attention(query, keys, values, scale=0.3, sink_logits=sinks)
    torch.testing.assert_close(out[:, 0], plain[:, 0])
    assert bool((out[:, 1] == 0).all())


def test_half_precision_accumulates_in_float32():
    query, keys, values = draw(0, 1, 2, 4, 1, 2000, 64)
    exact = dense_attention(query, keys, values, scale=0.125, softcap=20.0)
    half = dense_attention(query.bfloat16(), keys.bfloat16(), values.bfloat16(), scale=0.125, softcap=20.0)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.02, atol=0.02)


@settings(max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(2, 40),
    st.integers(1, 200),
    st.sampled_from([8, 33, 64]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_new_tokens_after_a_past_are_as_with_a_mask(kv_heads, groups, queries, past, size, dtype):
    tokens = past + queries
    query = torch.randn(2, kv_heads * groups, queries, size).to(dtype)
    keys, values = torch.randn(2, 2, kv_heads, tokens, size).to(dtype)
    mask = torch.ones(queries, tokens, dtype=torch.bool).tril(past)[None, None]
    found = dense_attention(query, keys, values, scale=0.3)
    expected = dense_attention(query.float(), keys.float(), values.float(), scale=0.3, mask=mask)
    assert found.dtype == dtype
    rounding = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.float(), expected, rtol=rounding, atol=rounding)


def test_new_tokens_after_a_past_pass_gradients():
    query, held = torch.randn(1, 4, 5, 8, requires_grad=True), torch.randn(2, 1, 2, 9, 8, requires_grad=True)
    mask = torch.ones(5, 9, dtype=torch.bool).tril(4)[None, None]
    found = torch.autograd.grad(dense_attention(query, *held, scale=0.3).square().sum(), (query, held))
    masked = dense_attention(query, *held, scale=0.3, mask=mask)
    expected = torch.autograd.grad(masked.square().sum(), (query, held))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_no_mask_over_a_long_past_is_made(softcap, monkeypatch):
    query, keys = torch.randn(1, 2, 64, 8), torch.randn(1, 1, 4096, 8)
    monkeypatch.setattr(dense, "_LOGITS_PER_CHUNK", 4 * 2 * 4096)
    held, made, mask_of = 4 * 4096, [], dense.causal_mask
    monkeypatch.setattr(dense, "causal_mask", lambda *sizes: made.append(mask_of(*sizes)) or made[-1])
    dense_attention(query, keys, keys, scale=0.3, softcap=softcap)
    assert all(mask.numel() <= held for mask in made)
    assert bool(made) == (softcap is not None)


@pytest.mark.parametrize("queries", [40, 100])
@pytest.mark.parametrize("padding", [[0, 0], [30, 7]])
def test_prompts_in_bfloat16_are_near_the_formula(queries, padding):
    """Where the CPU multiplies bfloat16 this is native code, else torch's."""
    query, keys, values = (part.bfloat16() for part in draw(3, 2, 2, 3, queries, 100, 64))
    mask = causal(padding, queries, 100)
    wanted = dense_attention(query.float(), keys.float(), values.float(), scale=0.125, mask=mask)
    shown = mask.any(-1)  # padding queries are nobody's
    found = dense_attention(query, keys, values, scale=0.125, mask=mask if any(padding) else None)
    assert found.dtype == torch.bfloat16
    error = (found.float() - wanted).abs() * shown.unsqueeze(-1)
    assert float(error.max()) <= 2.0**-7 * float(values.abs().max())


def test_other_masks_than_causal_are_followed_in_bfloat16():
    query, keys, values = (part.bfloat16() for part in draw(4, 1, 1, 2, 30, 60, 64))
    mask = torch.rand(1, 1, 30, 60, generator=torch.Generator().manual_seed(5)) < 0.5
    mask[..., 0] = True
    found = dense_attention(query, keys, values, scale=0.125, mask=mask).float()
    wanted = dense_attention(query.float(), keys.float(), values.float(), scale=0.125, mask=mask)
    assert float((found - wanted).abs().max()) <= 2.0**-6 * float(values.abs().max())
    seeing_all = dense_attention(query, keys, values, scale=0.125, causal=False).float()
    wanted = dense_attention(query.float(), keys.float(), values.float(), scale=0.125, causal=False)
    assert float((seeing_all - wanted).abs().max()) <= 2.0**-6 * float(values.abs().max())


def test_gradients_flow_through_bfloat16():
    query, keys, values = (part.bfloat16().requires_grad_() for part in draw(5, 1, 1, 2, 8, 8, 16))
    dense_attention(query, keys, values, scale=0.25).float().sum().backward()
    assert query.grad is not None
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()


def test_more_queries_than_tokens_in_bfloat16():
    """Where padding was dropped from what is held, queries of padding are still asked."""
    query, keys, values = (part.bfloat16() for part in draw(6, 1, 1, 2, 12, 9, 16))
    mask = torch.arange(9) <= torch.arange(-3, 9).view(-1, 1)
    found = dense_attention(query, keys, values, scale=0.25, mask=mask[None, None])[:, :, 3:].float()
    wanted = dense_attention(query.float(), keys.float(), values.float(), scale=0.25, mask=mask[None, None])
    assert float((found - wanted[:, :, 3:]).abs().max()) <= 2.0**-6 * float(values.abs().max())
