"""The prepared native calls of a decode step against the general operations."""

from __future__ import annotations

import pytest
import torch

from keyhole import kernels
from keyhole.attention import Logits, Part, attend_slots, dense_attention, merge
from keyhole.kernels.attention.append import prepared_append
from keyhole.kernels.attention.prepared import prepared
from keyhole.kernels.ranking.page_slots import page_slots
from keyhole.kernels.ranking.pick_pages import pick_pages

pytestmark = pytest.mark.skipif(not kernels.native_available(), reason="the native library is not built")

SIZES = [(1, 3, 3, 64), (2, 1, 1, 17), (1, 2, 4, 128), (3, 2, 5, 40), (1, 2, 2, 31)]  # B, Hkv, G, D


def cache(batch, heads, size, dtype, tokens=300, room=340):
    torch.manual_seed(0)
    memory = torch.full((2, batch, heads, room, size), torch.nan).to(dtype)
    memory[:, :, :, :tokens] = torch.randn(2, batch, heads, tokens, size).to(dtype)
    return memory[0], memory[1]


def chosen(batch, heads, tokens, most):
    slots = torch.rand(batch, heads, tokens).argsort(-1)[..., :most].sort(-1).values.int()
    return slots, torch.randint(0, most + 1, (batch, heads), dtype=torch.int32)


@pytest.mark.parametrize("level", kernels.cpu_levels())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_attends_as_the_general_operation_and_merges(sizes, softcap, dtype, level):
    batch, heads, groups, size = sizes
    keys, values = cache(batch, heads, size, dtype)
    query = torch.randn(batch, heads * groups, size).to(dtype)
    logits = Logits(size**-0.5, softcap)
    first, second = (chosen(batch, heads, 150, 77) for _ in range(2))
    second = second[0] + 150, second[1]
    expected = [attend_slots(query, keys, values, *part, logits) for part in (first, second)]
    tight = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    with kernels.cpu_level(level):
        native = prepared(keys, values)
        before = native.attend(query, 300, *first, scale=logits.scale, softcap=softcap)
        both = native.attend(query, 300, *second, scale=logits.scale, softcap=softcap, before=before)
    torch.testing.assert_close(before[0], expected[0].out, **tight)
    torch.testing.assert_close(before[1], expected[0].lse, rtol=1e-4, atol=1e-4)
    union = merge(*expected)
    torch.testing.assert_close(both[0], union.out, **tight)
    torch.testing.assert_close(both[1], union.lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_attends_to_everything_with_sink_logits(sizes):
    batch, heads, groups, size = sizes
    keys, values = cache(batch, heads, size, torch.float32)
    query, sinks = torch.randn(batch, heads * groups, size), torch.randn(heads * groups)
    out, _ = prepared(keys, values).attend(query, 300, None, None, scale=0.2, sink_logits=sinks)
    held = keys[:, :, :300], values[:, :, :300]
    expected = dense_attention(query.unsqueeze(2), *held, scale=0.2, sink_logits=sinks).squeeze(2)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_refuses_slots_counts_and_queries_that_do_not_fit():
    native = prepared(*cache(1, 2, 16, torch.float32))
    query, slots = torch.randn(1, 4, 16), torch.tensor([[[0, 299], [3, 300]]], dtype=torch.int32)
    counts = torch.tensor([[2, 2]], dtype=torch.int32)
    with pytest.raises(ValueError, match="slot is outside"):
        native.attend(query, 300, slots, counts, scale=1.0)
    with pytest.raises(ValueError, match="count is outside"):
        native.attend(query, 300, slots, counts + 1, scale=1.0)
    with pytest.raises(ValueError, match="does not fit"):
        native.attend(torch.randn(1, 4, 17), 300, slots, counts, scale=1.0)
    assert not native.takes(query.half())
    assert not native.takes(query.clone().requires_grad_())


def test_a_part_over_nothing_changes_nothing():
    keys, values = cache(1, 2, 16, torch.float32)
    native, query = prepared(keys, values), torch.randn(1, 4, 16)
    slots, counts = chosen(1, 2, 300, 20)
    counts = counts.clamp(min=1)
    nothing = Part(torch.zeros(1, 4, 16), torch.full((1, 4), -torch.inf))
    alone = native.attend(query, 300, slots, counts, scale=0.3)
    with_it = native.attend(query, 300, slots, counts, scale=0.3, before=nothing)
    assert all(torch.equal(*pair) for pair in zip(alone, with_it, strict=True))
    empty = native.attend(query, 300, slots, counts * 0, scale=0.3, before=nothing)
    assert torch.equal(empty[0], nothing.out)
    assert torch.equal(empty[1], nothing.lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strided", [False, True])
def test_appends_what_is_finite_and_nothing_else(dtype, strided):
    keys, values = cache(2, 3, 20, dtype)
    native, before = prepared_append(keys, values), keys.clone()
    new = [torch.randn(2, 4, 3, 20).to(dtype).transpose(1, 2) for _ in range(2)]
    new = new if strided else [part.contiguous() for part in new]
    assert native.takes(*new)
    for place, number in ((0, torch.nan), (1, torch.inf), (0, -torch.inf)):
        bad = [part.clone() for part in new]
        bad[place][1, 2, 3, 19] = number
        assert not native.append(*bad, 300)
    torch.testing.assert_close(keys, before, rtol=0, atol=0, equal_nan=True)
    assert native.append(*new, 300)
    assert torch.equal(keys[:, :, 300:304], new[0])
    assert torch.equal(values[:, :, 300:304], new[1])
    assert keys[:, :, 304:].isnan().all()
    assert not native.takes(new[0].float() if dtype != torch.float32 else new[0].half(), new[1])


@pytest.mark.parametrize("lists", [1, 3])
@pytest.mark.parametrize("mass", [None, 0.4, 0.9])
def test_picks_pages_as_the_reference(lists, mass):
    generator = torch.Generator().manual_seed(int(lists + 10 * (mass or 0)))
    for page in (1, 4, 16):
        for last in (1, 31, 100, 333):
            pages = -(-last // page)
            # Few different scores, so that there are ties.
            scores = torch.randint(0, 7, (2, lists, pages), generator=generator).float()
            scores[0, 0, :: max(1, pages // 3)] = torch.nan
            shares = torch.rand(2, 3, pages, generator=generator).softmax(-1)
            anchored = torch.rand(2, 3, generator=generator) * 0.3
            first = torch.tensor([min(3, last), min(last, 40)], dtype=torch.int32)
            paged = kernels.Paged(first, torch.tensor([last, last], dtype=torch.int32), last, page)
            limits = torch.tensor([min(last, 21), min(last, 60)])
            allowed = kernels.Allowed(limits, int(limits.max()), mass, 5)
            count = min(pages, min(allowed.most, last) // page + 3)
            found = pick_pages(scores, shares, anchored, paged, allowed, count)
            places = torch.arange(pages)
            ranked = scores.masked_fill(places < (first // page).view(-1, 1, 1), -torch.inf)
            ranked = ranked.nan_to_num(nan=-torch.inf)
            expected = page_slots(
                kernels.top_slots(ranked, count), ranked, shares, anchored, paged, allowed, impl="reference"
            )
            assert torch.equal(found.counts, expected.counts)
            torch.testing.assert_close(found.mass, expected.mass, rtol=1e-5, atol=1e-5)
            for row, some in zip(found.slots.flatten(0, 1), expected.slots.flatten(0, 1), strict=True):
                width = min(len(row), len(some))
                assert torch.equal(row[:width], some[:width])
                assert not row[width:].any()
