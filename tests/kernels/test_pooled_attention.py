"""Attention weights gathered to pages, against the definition in plain numpy loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole import kernels
from tests.kernels.cases import LAYOUTS, in_blocks

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def lse(logits):
    if not len(logits) or max(logits) == -np.inf:
        return -np.inf
    return max(logits) + np.log(np.sum(np.exp(np.asarray(logits) - max(logits))))


def by_definition(query, keys, span, how, score_extra, share_extra):
    """Scores [B, L, P], shares [B, Hkv, P] and lse [B, H] in float64, head by head and slot by slot."""
    batch, heads, kv_heads = *query.shape[:2], keys.shape[1]
    group, pages = heads // kv_heads, -(-span.last // how.page)
    scores = np.zeros((batch, kv_heads if how.per_head else 1, pages))
    shares, lses = np.zeros((batch, kv_heads, pages)), np.zeros((batch, heads))
    for b in range(batch):
        begin, end, first, stop = (int(bound[b]) for bound in span[:-1])
        votes, held = np.zeros((heads, span.last)), np.zeros((heads, span.last))
        for h in range(heads):
            rows = keys[b, h // group, begin:end].double().numpy()
            logits = rows @ query[b, h].double().numpy() * how.scale
            if how.softcap is not None:
                logits = how.softcap * np.tanh(logits / how.softcap)
            lses[b, h] = lse(logits)
            extra = [-np.inf if each is None else float(each[b, h]) for each in (score_extra, share_extra)]
            sharp = np.logaddexp(lse(logits * how.sharpness), extra[0])
            total = np.logaddexp(lses[b, h], extra[1])
            for slot in range(first, stop):
                votes[h, slot] = np.exp(logits[slot - begin] * how.sharpness - sharp)
                held[h, slot] = np.exp(logits[slot - begin] - total)
        for kv in range(kv_heads):
            own = slice(kv * group, (kv + 1) * group)
            shares[b, kv] = paged(held[own].mean(0), how.page)
            if how.per_head:
                scores[b, kv] = paged(gathered(votes[own], how), how.page)
        if not how.per_head:
            scores[b, 0] = paged(gathered(votes, how), how.page)
    return scores, shares, lses


def gathered(votes, how):
    return votes.max(0) if how.largest else votes.mean(0)


def paged(weights, page):
    return [sum(weights[at : at + page]) for at in range(0, len(weights), page)]


def poisoned(keys, span):
    """The keys with odd strides, and NaN wherever the span does not reach."""
    batch, heads, slots, size = keys.shape
    wide = torch.full((batch, heads, slots + 5, size + 3), torch.nan, dtype=keys.dtype)
    wide[:, :, 2 : slots + 2, 1 : size + 1] = keys
    for row, (begin, end) in enumerate(zip(span.begin.tolist(), span.end.tolist(), strict=True)):
        wide[row, :, : begin + 2] = torch.nan
        wide[row, :, end + 2 :] = torch.nan
    return wide[:, :, 2 : slots + 2, 1 : size + 1]


def check(
    impl, *, batch=1, kv_heads=2, group=4, size=16, span, how, extra=(False, False), seed=0, dtype=None,
    blocks=None,
):  # fmt: skip
    """`blocks`, where given, are the options of `in_blocks`."""
    make = torch.Generator().manual_seed(seed)
    query = 2 * torch.randn(batch, kv_heads * group, size, generator=make)
    keys = torch.randn(batch, kv_heads, int(span.end.max()) + 3, size, generator=make).to(dtype)
    extras = [torch.randn(query.shape[:2], generator=make) if wanted else None for wanted in extra]
    expected = by_definition(query, keys, span, how, *extras)
    held, table = poisoned(keys, span), None
    if blocks is not None:
        held, table = in_blocks(keys, span.begin.tolist(), span.end.tolist(), **blocks)
    found = kernels.pooled_attention(
        query, held, span, how, score_extra=extras[0], share_extra=extras[1], block_table=table, impl=impl
    )
    for one, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, right, rtol=3e-4, atol=1e-6)


def span(begin, end, first, stop, last=None):
    """An `end` or a `stop` is one for each row, or one for all."""
    end, stop = (torch.tensor(each).expand(len(begin)) for each in (end, stop))
    last = int(stop.max()) if last is None else last
    return kernels.Span(torch.tensor(begin), end, torch.tensor(first, dtype=torch.int32), stop.int(), last)


@pytest.mark.parametrize("length", [1, 7, 8, 15, 16, 17, 31, 33, 63, 100, 1023, 1024, 1025, 2000])
def test_lengths(any_impl, length):
    check(any_impl, span=span([0], length, [0], length), how=kernels.Pooling(0.3))


@pytest.mark.parametrize("page", [1, 3, 16, 100, 1500])
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
def test_pages(any_impl, page, largest, per_head):
    how = kernels.Pooling(0.3, page=page, largest=largest, per_head=per_head)
    check(any_impl, batch=2, span=span([0, 1100], 2050, [3, 1170], 2001), how=how, extra=(True, True))


@pytest.mark.parametrize("page", [1, 16, 100])
@pytest.mark.parametrize("per_head", [False, True])
def test_rows_end_before_what_the_host_knows(any_impl, page, per_head):
    """As in steps of fixed size: there are pages, and memory, for what is still to come."""
    where = span([0, 3, 40], [700, 1100, 40], [2, 30, 60], [650, 1030, 40], 1090)
    how = kernels.Pooling(0.3, page=page, per_head=per_head)
    check(any_impl, batch=3, span=where, how=how, extra=(True, True))


@pytest.mark.parametrize("size", [1, 3, 8, 17, 64, 96, 131])
@pytest.mark.parametrize("group", [1, 2, 3, 5, 8])
def test_heads(any_impl, size, group):
    check(any_impl, size=size, group=group, span=span([5], 70, [9], 61), how=kernels.Pooling(0.2), seed=size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_are_read_in_their_own_dtype(any_impl, dtype):
    check(any_impl, span=span([2], 300, [2], 250), how=kernels.Pooling(0.2), dtype=dtype, extra=(False, True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [1, 13, 16, 128])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_in_blocks(any_impl, dtype, block_size, layout):
    where = span([0, 3, 40], [700, 1100, 40], [2, 30, 60], [650, 1030, 40], 1090)
    how = kernels.Pooling(0.3, 4.0, page=3, per_head=True)
    blocks = {"block_size": block_size, "layout": layout}
    check(any_impl, batch=3, span=where, how=how, extra=(True, True), dtype=dtype, blocks=blocks)


@pytest.mark.parametrize("bad", [-1, 9])
def test_blocks_that_are_none_are_refused(impl, bad):
    query, cache, table = torch.ones(1, 2, 8), torch.ones(9, 4, 2, 8), torch.tensor([[3, bad, 1]])
    kernels.pooled_attention(
        query, cache, span([0], 4, [0], 4), kernels.Pooling(1.0), block_table=table, impl=impl
    )
    with pytest.raises(ValueError, match="a slot is outside the cache"):
        kernels.pooled_attention(
            query, cache, span([0], 5, [0], 4), kernels.Pooling(1.0), block_table=table, impl=impl
        )


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("sharpness", [1.0, 11.3, 0.25])
def test_softcap_and_sharpness(any_impl, softcap, sharpness):
    how = kernels.Pooling(0.4, softcap, sharpness=sharpness)
    check(any_impl, span=span([4], 1200, [30], 1100), how=how, extra=(True, True))


@settings(max_examples=40)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 40), st.data(), st.integers(0, 99)
)
def test_any_case(batch, kv_heads, group, size, data, seed):
    end = data.draw(st.lists(st.integers(1, 1100), min_size=batch, max_size=batch))
    stop = [data.draw(st.integers(0, most)) for most in end]
    last = data.draw(st.integers(max(stop), max(end)))
    begin = [data.draw(st.integers(0, most)) for most in end]
    first = [data.draw(st.integers(low, most)) for low, most in zip(begin, end, strict=True)]
    how = kernels.Pooling(
        size**-0.5,
        sharpness=data.draw(st.sampled_from([1.0, 5.0])),
        page=data.draw(st.integers(1, 40)),
        per_head=data.draw(st.booleans()),
        largest=data.draw(st.booleans()),
    )
    blocks = data.draw(
        st.none()
        | st.fixed_dictionaries({"block_size": st.integers(1, 140), "layout": st.sampled_from(LAYOUTS)})
    )
    sizes = {"batch": batch, "kv_heads": kv_heads, "group": group, "size": size}
    check(
        "auto",
        **sizes,
        span=span(begin, end, first, stop, last),
        how=how,
        extra=(True, True),
        seed=seed,
        blocks=blocks,
    )


@pytest.mark.parametrize("extra", [None, 2.0])
def test_a_row_in_which_nothing_competes(any_impl, extra):
    extras = None if extra is None else torch.full((2, 4), extra)
    found = kernels.pooled_attention(
        torch.ones(2, 4, 8), torch.ones(2, 2, 40, 8), span([0, 40], 40, [0, 40], 40), kernels.Pooling(1.0),
        share_extra=extras, impl=any_impl,
    )  # fmt: skip
    assert found.scores[1].tolist() == [[0.0] * 40]
    assert not found.shares[1].any()
    assert (found.lse[1] == -torch.inf).all()
    torch.testing.assert_close(found.scores[0].sum(), torch.tensor(1.0))


@pytest.mark.usefixtures("level")
def test_equal_keys_get_equal_weights():
    """Wherever they lie, so that ties are ties."""
    keys = torch.randn(1, 2, 3000, 24)
    keys[:, :, [5, 6, 1024, 1777, 2999]] = torch.randn(1, 2, 1, 24)
    how = kernels.Pooling(0.5)
    for group in (1, 3, 4, 5):
        query = torch.randn(1, 2 * group, 24)
        found = kernels.pooled_attention(query, keys, span([1], 3000, [1], 3000), how, impl="native")
        assert found.scores[0, 0, [5, 6, 1024, 1777, 2999]].unique().numel() == 1


def test_a_weight_far_below_the_others_does_not_spoil_them(any_impl):
    keys = torch.zeros(1, 1, 50, 4)
    keys[0, 0, 7] = 300.0
    found = kernels.pooled_attention(
        torch.ones(1, 2, 4), keys, span([0], 50, [0], 50), kernels.Pooling(1.0),
        share_extra=torch.full((1, 2), 1200.0), impl=any_impl,
    )  # fmt: skip
    expected = torch.zeros(50)
    expected[7] = 1.0
    torch.testing.assert_close(found.scores[0, 0], expected, atol=1e-30, rtol=1e-6)
    torch.testing.assert_close(found.shares[0, 0], expected / 2, atol=1e-30, rtol=1e-4)


def test_operands_are_checked():
    query, keys, how = torch.zeros(1, 4, 8), torch.zeros(1, 2, 10, 8), kernels.Pooling(1.0)
    with pytest.raises(ValueError, match="do not fit query"):
        kernels.pooled_attention(query, keys[..., 1:], span([0], 10, [0], 10), how)
    with pytest.raises(ValueError, match="do not fit query"):
        kernels.pooled_attention(query[:, 1:], keys, span([0], 10, [0], 10), how)
    for bad in (
        span([0], 11, [0], 10),
        span([3], 10, [2], 10),
        span([-1], 10, [0], 10),
        span([0], 9, [0], 10),
        span([0], 10, [0], 10, 9),
        span([0], 10, [0], 10, 11),
    ):
        with pytest.raises(ValueError, match="does not lie in"):
            kernels.pooled_attention(query, keys, bad, how)
    with pytest.raises(ValueError, match="one a batch row"):
        kernels.pooled_attention(query, keys, span([0, 0], 10, [0, 0], 10), how)
    table = torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="do not fit query"):
        kernels.pooled_attention(query, torch.zeros(9, 4, 3, 8), span([0], 8, [0], 8), how, block_table=table)
    with pytest.raises(ValueError, match=r"does not lie in 0\.\.8"):
        kernels.pooled_attention(query, torch.zeros(9, 4, 2, 8), span([0], 9, [0], 8), how, block_table=table)
    with pytest.raises(ValueError, match="page=0"):
        kernels.pooled_attention(query, keys, span([0], 10, [0], 10), how._replace(page=0))
