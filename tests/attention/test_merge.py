import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.attention import Logits, Part, add_sink_logits, attend_slots, merge
from tests import oracles


def part(query, keys, values, slots):
    """Attention of `query [Q, D]` over some slots, from the oracle."""
    read = [list(slots)] * len(keys)
    out, lse = oracles.attention(query, keys, values, read, scale=0.3)
    return Part(torch.tensor(out), torch.tensor(lse))


@settings(max_examples=50)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 10**6), st.floats(0.1, 300))
def test_parts_make_the_whole(a, b, c, seed, spread):
    random = np.random.default_rng(seed)
    keys, values = random.normal(size=(2, a + b + c, 4)) * spread, random.normal(size=(2, a + b + c, 3))
    query = random.normal(size=(4, 4))
    parts = [
        part(query, keys, values, slots) for slots in (range(a), range(a, a + b), range(a + b, a + b + c))
    ]
    whole = part(query, keys, values, range(a + b + c))
    for merged in (
        merge(merge(parts[0], parts[1]), parts[2]),
        merge(parts[0], merge(parts[1], parts[2])),
        merge(merge(parts[2], parts[0]), parts[1]),
    ):
        torch.testing.assert_close(merged.lse, whole.lse)
        torch.testing.assert_close(merged.out, whole.out, rtol=1e-4, atol=1e-5)


def test_an_empty_part_changes_nothing():
    some = Part(torch.randn(2, 3), torch.tensor([1.0, -200.0]))
    none = Part(torch.zeros(2, 3), torch.full((2,), -math.inf))
    for merged in (merge(some, none), merge(none, some)):
        torch.testing.assert_close(merged, some)
    empty = merge(none, none)
    assert bool((empty.out == 0).all())
    assert empty.lse.tolist() == [-math.inf] * 2


def test_nan_is_not_hidden():
    """A query gone wrong must show, not come out as zeros."""
    bad = Part(torch.full((1, 2), torch.nan), torch.tensor([torch.nan]))
    good = Part(torch.ones(1, 2), torch.tensor([0.0]))
    assert bool(merge(bad, good).out.isnan().all())
    assert bool(merge(good, bad).out.isnan().all())


def test_large_logits_do_not_overflow():
    ones, twos = torch.ones(1, 2), torch.full((1, 2), 2.0)
    merged = merge(Part(ones, torch.tensor([1e30])), Part(twos, torch.tensor([-1e30])))
    assert merged.out.tolist() == [[1, 1]]
    even = merge(Part(ones, torch.tensor([5e4])), Part(twos, torch.tensor([5e4])))
    assert even.out.tolist() == [[1.5, 1.5]]


@given(st.floats(-50, 50), st.integers(0, 10**6))
def test_sink_logits_take_their_share(logit, seed):
    random = np.random.default_rng(seed)
    query, keys, values = (
        random.normal(size=(2, 4)),
        random.normal(size=(1, 7, 4)),
        random.normal(size=(1, 7, 3)),
    )
    sinks = np.array([logit, -logit])
    expected, lse = oracles.attention(query, keys, values, [range(7)], scale=0.3, sink_logits=sinks)
    out = add_sink_logits(part(query, keys, values, range(7)), Logits(1.0, sink_logits=torch.tensor(sinks)))
    np.testing.assert_allclose(out.out, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(out.lse, lse, rtol=1e-5)


def test_half_precision_stays_half():
    halves = Part(torch.ones(1, 2, dtype=torch.bfloat16), torch.tensor([0.0]))
    assert merge(halves, halves).out.dtype == torch.bfloat16
    assert add_sink_logits(halves, Logits(1.0, sink_logits=torch.zeros(1))).out.dtype == torch.bfloat16


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("groups", [1, 3, 8])
@pytest.mark.parametrize("size", [8, 40, 128])
def test_attention_over_slots_of_each_head(softcap, groups, size):
    generator = torch.Generator().manual_seed(size)
    query = torch.randn(2, 2 * groups, size, generator=generator)
    keys = torch.randn(2, 2, 63, size, generator=generator)
    values = torch.randn(2, 2, 63, 24, generator=generator)
    slots = torch.stack([torch.randperm(63, generator=generator)[:20] for _ in range(4)]).int().view(2, 2, 20)
    counts = torch.tensor([[20, 0], [1, 7]], dtype=torch.int32)
    logits = Logits(size**-0.5, softcap)
    found = attend_slots(query, keys, values, slots, counts, logits)
    assert found.out.shape == (2, 2 * groups, 24)
    for row in range(2):
        read = [slots[row, head, : counts[row, head]].tolist() for head in range(2)]
        out, lse = oracles.attention(
            *(oracles.array(tensor[row]) for tensor in (query, keys, values)),
            read,
            scale=logits.scale,
            softcap=softcap,
        )
        np.testing.assert_allclose(found.out[row], out, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.lse[row], lse, rtol=1e-4, atol=1e-5)


def test_slots_shared_by_heads_and_filling_that_is_poisoned():
    """What `counts` leaves out, and slots that nobody names, may hold anything: also NaN."""
    query, keys, values = torch.randn(2, 4, 16), torch.randn(2, 2, 10, 16), torch.randn(2, 2, 10, 16)
    keys[:, :, 5:], values[:, :, 5:] = torch.nan, torch.inf
    slots = torch.tensor([[0, 1, 2, 3, 4, 9], [4, 9, 9, 9, 9, 9]], dtype=torch.int32)
    counts = torch.tensor([5, 1], dtype=torch.int32)
    found = attend_slots(query, keys, values, slots, counts, Logits(0.25))
    assert bool(found.out.isfinite().all())
    torch.testing.assert_close(found.out[1], values[1, :, 4].repeat_interleave(2, 0))


def test_views_of_a_larger_buffer():
    buffer = torch.randn(2, 2, 40, 16)
    view = buffer[:, :, :21]
    slots, counts = torch.arange(21, dtype=torch.int32).expand(2, 21), torch.tensor([21, 21])
    query = torch.randn(2, 4, 16)
    torch.testing.assert_close(
        attend_slots(query, view, view, slots, counts, Logits(0.25)),
        attend_slots(query, view.clone(), view.clone(), slots, counts, Logits(0.25)),
    )
