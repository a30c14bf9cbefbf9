"""Block-sparse prompts against loops over the paper's formulae; native code against the reference."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole import kernels
from keyhole.attention import dense_attention
from keyhole.kernels import Reach
from keyhole.kernels.sale.reference import small_keys, small_queries
from keyhole.kernels.sale.tiles import SHARING, WIDTHS, Rounding, levels, pack, tiles, unpack
from tests import oracles_sale


def drawn(heads, kv_heads, queries, tokens, size, value_size=None, *, batch=1, dtype=torch.float32, seed=0):
    make = torch.Generator().manual_seed(seed)
    query = 2 * torch.randn(batch, heads, queries, size, generator=make)
    keys = torch.randn(batch, kv_heads, tokens, size, generator=make) + 1.0
    values = torch.randn(batch, kv_heads, tokens, value_size or size, generator=make)
    return query.to(dtype), keys.to(dtype), values.to(dtype)


def whole_numbers(queries, tokens, size, *, shift=0, seed=0, most=None):
    """Queries and keys that rounding to small integers does not change, keys of mean `shift`."""
    make, most = torch.Generator().manual_seed(seed), most or levels(size)
    query = torch.randint(-most, most + 1, (queries, size), generator=make).float()
    query[:, 0] = most
    half = torch.randint(-most, most + 1, (tokens // 2, size), generator=make).float()
    half[:, 1] = most
    keys = torch.zeros(tokens, size)
    keys[0 : tokens // 2 * 2 : 2], keys[1 : tokens // 2 * 2 : 2] = half, -half
    values = torch.randn(tokens, 5, generator=make)
    return query, keys + shift, values


def one_head(query, keys, values, tau, impl, *, scale, **reach):
    """The op on one head: out `[Q, Dv]`, map bool `[tiles, N]`, kept `[tiles]`."""
    found = kernels.sale_attention(
        *(part[None, None] for part in (query, keys, values)),
        torch.tensor([tau]),
        scale=scale,
        reach=Reach(**reach),
        with_map=True,
        impl=impl,
    )
    return found.out[0, 0], unpack(found.map[0, 0], len(keys)), found.kept[0, 0]


def dense(query, keys, values, padding=None):
    tokens, queries = keys.shape[2], query.shape[2]
    mask = None
    if padding is not None:
        slots = torch.arange(tokens)
        causal = slots <= torch.arange(tokens - queries, tokens).view(-1, 1)
        mask = causal & (slots >= torch.tensor(padding).view(-1, 1, 1, 1))
    return dense_attention(query, keys, values, scale=query.shape[-1] ** -0.5, mask=mask)


def sparse(query, keys, values, tau, impl, *, padding=None, with_map=False, **reach):
    tau = torch.as_tensor(tau, dtype=torch.float32).expand(query.shape[1])
    scale, reach = query.shape[-1] ** -0.5, Reach(**reach)
    return kernels.sale_attention(
        query, keys, values, tau, scale=scale, reach=reach, padding=padding, with_map=with_map, impl=impl
    )


@cache
def formula(queries, tokens, shift, width, pooled, rows, means, most):
    """Operands that estimates of `most` levels are exact for, options, what the formula keeps and answers."""
    operands = whole_numbers(queries, tokens, 8, shift=shift, most=most)
    options = {"sinks": 5, "window": 70, "width": width, "pooled": pooled, "rows": rows}
    scale, tau = 2e-4 * (63 / most) ** 2, 0.0118
    arrays = [part.numpy() for part in operands]
    keeps = oracles_sale.kept(*arrays[:2], tau, scale, **options)
    expected = oracles_sale.attention(*arrays, keeps, scale, rows=rows, means=means)
    return operands, options | {"scale": scale, "means": means}, tau, keeps, expected


@pytest.mark.parametrize(
    ("width", "pooled", "rows", "means"),
    [
        (1, True, 64, False),
        (1, False, 16, True),
        (4, True, 16, False),
        (32, False, 64, True),
        (2, True, 32, True),
    ],
)
@pytest.mark.parametrize(("queries", "tokens", "shift"), [(220, 220, 0), (70, 303, 3), (65, 259, -7)])
def test_exact_estimates_keep_what_the_formula_keeps(
    any_impl, queries, tokens, shift, width, pooled, rows, means
):
    if any_impl == "triton" and (rows < 64 or means):
        pytest.skip("no kernel")
    most = 127 if any_impl == "triton" else levels(8)
    operands, options, tau, keeps, expected = formula(
        queries, tokens, shift, width, pooled, rows, means, most
    )
    out, found, kept = one_head(*operands, tau, any_impl, **options)
    assert found.tolist() == keeps
    assert kept.tolist() == [sum(reads) for reads in keeps]
    assert width > 1 or any(False in reads[: len(reads) - reads[::-1].index(True)] for reads in keeps)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooled", [False, True])
def test_every_entry_whose_true_share_exceeds_tau_is_kept(impl, pooled):
    query, keys, values = whole_numbers(200, 300, 6)
    scale = 3e-4
    shares = oracles_sale.true_shares(query.numpy(), keys.numpy(), scale)
    for tau in (0.004, 0.02):
        _, found, _ = one_head(
            query, keys, values, tau, impl, scale=scale, sinks=0, window=0, width=1, pooled=pooled
        )
        needed = [shares[64 * t : 64 * (t + 1)].max(0) > tau for t in range(len(found))]
        assert sum(n.sum() for n in needed) > 0
        assert not (np.stack(needed) & ~found.numpy()).any()


@pytest.mark.parametrize("width", [1, 8])
def test_rounding_moves_a_score_by_no_more_than_its_steps_allow(impl, width):
    query, keys, values = (part[0, 0] for part in drawn(1, 1, 130, 290, 12))
    scale, tau = 12**-0.5, 0.01
    options = {"sinks": 32, "window": 40, "pooled": False}
    _, found, _ = one_head(query, keys, values, tau, impl, scale=scale, width=width, **options)
    scores = oracles_sale.relative_scores(query.numpy(), keys.numpy(), scale, **options)
    shifted = keys - keys.mean(0)
    steps = torch.nn.functional.pad(shifted, (0, 0, 0, 6)).unflatten(0, (-1, 8)).abs().amax((1, 2)) / levels(
        12
    )
    k_step, q_step = steps.repeat_interleave(8)[:290], query.abs().amax(1) / levels(12)
    slack = scale * (
        query.abs().sum(1)[:, None] * k_step / 2
        + (shifted.abs().sum(1) + 12 * k_step / 2) * q_step[:, None] / 2
    )
    bounds = zip(np.split(scores, [64, 128]), np.split(slack.numpy(), [64, 128]), strict=True)
    where = oracles_sale.tiles(130, 290, 32, 40)
    passed = 0
    for reads, (score, loose), (_, _, begin, end) in zip(found.numpy(), bounds, where, strict=True):
        surely = (score * np.exp(-loose) > tau * 1.001).any(0)[begin:end]
        maybe = (
            (score * np.exp(loose) > tau * 0.999).any(0)[begin:end].reshape(-1, width).any(1).repeat(width)
        )
        assert not (surely & ~reads[begin:end]).any()
        assert not (reads[begin:end] & ~maybe).any()
        passed += surely.sum()
    assert passed > 0


SHAPES = [
    # heads, KV heads, queries, tokens, D, Dv
    (4, 2, 64, 64, 16, 16),
    (6, 2, 333, 333, 33, 20),
    (3, 1, 65, 1025, 24, 24),
    (2, 2, 129, 700, 128, 64),
    (9, 1, 100, 501, 7, 130),
    (1, 1, 1, 300, 5, 1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_everything_is_dense(impl, shape, dtype):
    operands = drawn(*shape, dtype=dtype)
    expected = dense(*(part.float() for part in operands))
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for tau in (0.0, 1e-30):
        found = sparse(*operands, tau, impl)
        assert found.out.dtype == dtype
        torch.testing.assert_close(found.out.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("rows", "means"), [(64, False), (16, True), (32, True)])
@pytest.mark.parametrize("width", WIDTHS)
def test_all_implementations_agree(shape, width, rows, means):
    query, keys, values = (part.clone() for part in drawn(*shape, batch=2, seed=3))
    padding = (0, shape[3] - shape[2] + 1) if shape[2] > 1 else (0, 40)
    query[1, :, :1] *= 1e4
    keys[1, :, : padding[1]] *= 1e4
    options = {"padding": padding, "with_map": True, "width": width, "sinks": 3, "window": 65}
    options |= {"rows": rows, "means": means}
    expected = sparse(query, keys, values, 0.03, "reference", **options)
    found = sparse(*(poisoned(part) for part in (query, keys, values)), 0.03, "native", **options)
    differing = (unpack(found.map, shape[3]) != unpack(expected.map, shape[3])).sum(-1)
    runs = differing.numel() * shape[3] / width
    assert int(differing.sum()) / width <= 1e-3 * runs  # where rounding meets a threshold
    same = (differing == 0).repeat_interleave(rows, 2)[:, :, : shape[2]]
    torch.testing.assert_close(found.out[same], expected.out[same], rtol=1e-4, atol=1e-4)
    assert torch.equal(found.kept, unpack(found.map, shape[3]).sum(-1).int())


def poisoned(tensor):
    """The same values in a larger tensor, NaN between rows and heads."""
    batch, heads, rows, size = tensor.shape
    wide = torch.full((batch, rows + 3, heads + 1, size + 5), torch.nan)
    wide[:, 2 : rows + 2, :heads, 1 : size + 1] = tensor.transpose(1, 2)
    return wide[:, 2 : rows + 2, :heads, 1 : size + 1].transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_is_neither_read_nor_answered(impl, dtype):
    query, keys, values = drawn(4, 2, 300, 300, 16, batch=4, dtype=dtype)
    padding = (0, 1, 75, 299)
    for row, unused in enumerate(padding):
        query[row, :, :unused], keys[row, :, :unused], values[row, :, :unused] = 1e4, -1e4, 1e4
    found = sparse(query, keys, values, 0.02, impl, padding=padding, window=10, width=1).out
    for row, unused in enumerate(padding):
        alone = [part[row : row + 1, :, unused:] for part in (query, keys, values)]
        expected = sparse(*alone, 0.02, impl, window=10, width=1).out[0]
        torch.testing.assert_close(found[row, :, unused:], expected)
        assert not found[row, :, :unused].any()


def test_less_is_kept_the_larger_tau_is(impl):
    operands = drawn(2, 1, 256, 640, 16)
    before = None
    for tau in (1e-30, 1e-4, 1e-3, 0.01, 0.1, 1.0, 1e30):
        found = unpack(sparse(*operands, tau, impl, with_map=True, width=1).map, 640)
        assert before is None or not (found & ~before).any()
        before = found
    for number, tile in enumerate(tiles(256, 640, 0, Reach())):
        always = torch.ones(640, dtype=torch.bool)
        always[tile.begin : tile.end] = False
        always[tile.first + 64 :] = False
        assert torch.equal(before[0, 0, number], always)


def test_pooled_shares_keep_less_and_never_more(impl):
    operands = drawn(2, 1, 192, 700, 16)
    most, less = (
        unpack(sparse(*operands, 0.01, impl, with_map=True, width=1, pooled=pooled).map, 700)
        for pooled in (False, True)
    )
    assert not (less & ~most).any()
    assert less.sum() < most.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_where_nothing_is_kept_blocks_count_as_their_means(impl, dtype):
    query, keys, values = drawn(2, 1, 64, 64 + 32 * 9, 16, 24, dtype=dtype)
    found = sparse(query, keys, values, 1e30, impl, sinks=32, window=32, rows=16, means=True).out
    keys, values = keys[0, 0].float(), values[0, 0].float()
    # Position 288 is that of the first query: sinks to 32, blocks to 256, the rest one by one.
    keys, values = (torch.cat((x[:32], x[32:256].view(7, 32, -1).mean(1), x[256:])) for x in (keys, values))
    logits = query[0].float() @ keys.T / 4
    logits[..., 32:39] += torch.tensor(32.0).log()
    later = torch.arange(len(keys)) > 32 + 7 + 32 + torch.arange(64).view(-1, 1)
    expected = logits.masked_fill(later, -torch.inf).softmax(-1) @ values
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found[0].float(), expected, rtol=tolerance, atol=tolerance)


def test_means_stand_exactly_for_keys_that_are_the_same(impl):
    query, keys, values = drawn(2, 1, 100, 700, 16)
    keys[:, :, :672] = keys[:, :, :672:32].repeat_interleave(32, 2)
    for tau in (0.01, 1e30):
        found = sparse(query, keys, values, tau, impl, rows=16, means=True, width=1)
        torch.testing.assert_close(found.out, dense(query, keys, values), rtol=1e-3, atol=1e-3)


def test_means_lessen_the_error_where_keys_of_a_block_are_near(impl):
    query, keys, values = drawn(4, 2, 256, 640, 16)
    operands = query / 8, keys, values
    wanted = dense(*operands)
    least, most = (
        float((sparse(*operands, 0.003, impl, rows=16, width=1, means=means).out - wanted).norm())
        for means in (True, False)
    )
    assert 0 < least < most / 2


def test_fewer_queries_together_keep_no_more(impl):
    operands = drawn(2, 1, 250, 700, 16)
    maps = {
        rows: unpack(sparse(*operands, 0.01, impl, with_map=True, width=1, rows=rows).map, 700)
        for rows in SHARING
    }
    assert [found.shape[2] for found in maps.values()] == [16, 8, 4]
    for less, more in ((16, 32), (32, 64)):
        both = torch.nn.functional.pad(maps[less], (0, 0, 0, -maps[less].shape[2] % 2))
        joined = both.unflatten(2, (-1, 2)).any(3)
        candidates = slice(32, 32 * (450 - 128) // 32)
        assert torch.equal(joined[..., candidates], maps[more][..., candidates])
        assert maps[less].float().mean() < maps[more].float().mean()


def test_heads_do_not_meddle(any_impl):
    query, keys, values = drawn(3, 1, 128, 500, 16)
    tau = torch.tensor([0.0, 0.02, 1e30])
    found = sparse(query, keys, values, tau, any_impl, with_map=True, width=1)
    assert found.kept[0, 0].tolist() == [436, 500]
    torch.testing.assert_close(found.out[:, 0], dense(query, keys, values)[:, 0], rtol=1e-4, atol=1e-5)
    order = [2, 0, 1]
    other = sparse(query[:, order], keys, values, tau[order], any_impl, with_map=True, width=1)
    assert torch.equal(other.map, found.map[:, order])
    assert torch.equal(other.out, found.out[:, order])


def test_a_query_that_is_not_finite_spoils_itself_alone(impl):
    query, keys, values = drawn(2, 1, 130, 400, 16)
    clean = sparse(query, keys, values, 0.02, impl).out
    query[0, 1, 70, 3], query[0, 0, 5, 0] = torch.nan, torch.inf
    found = sparse(query, keys, values, 0.02, impl).out
    assert found[0, 1, 70].isnan().all()
    assert found[0, 0, 5].isnan().all()
    # A tile without that query may keep less, but the heads and tiles beside it are the same.
    assert torch.equal(found[0, 0, 64:], clean[0, 0, 64:])
    assert torch.equal(found[0, 1, :64], clean[0, 1, :64])
    assert found.isnan().any(-1).sum() == 2


@pytest.mark.parametrize("level_of", [0.0, 1e-20, 1e4])
def test_keys_of_any_size(any_impl, level_of):
    query, keys, values = drawn(2, 1, 100, 400, 16)
    out = sparse(query, level_of * keys, values, 0.001, any_impl).out
    assert out.isfinite().all()
    if level_of < 1:
        expected = dense(query, level_of * keys, values)
        torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)


@given(st.integers(1, 400), st.integers(0, 400), st.integers(0, 300), st.integers(0, 200), st.integers(0, 99))
@settings(max_examples=60)
def test_tiles_cover_every_query_once_and_leave_out_no_near_key(queries, earlier, window, sinks, unused):
    tokens = queries + earlier
    unused %= tokens
    reach = Reach(sinks=sinks, window=window)
    found = tiles(queries, tokens, unused, reach)
    rows = [row for tile in found for row in range(*tile.rows)]
    assert rows == list(range(max(unused - earlier, 0), queries))
    for tile in found:
        assert tile.first == earlier + tile.rows[0] - unused >= 0
        assert tile.begin == tile.end or (tile.begin >= sinks and tile.end + window <= tile.first)
        assert tile.end % 32 == tile.begin % 32 == 0
        assert tile.first - window - tile.end < 32 or tile.begin == tile.end


@given(st.lists(st.booleans(), min_size=1, max_size=100))
def test_maps_take_a_bit_for_a_key(wanted):
    words = pack(torch.tensor(wanted))
    assert len(words) == -(-len(wanted) // 32)
    assert unpack(words, len(wanted)).tolist() == wanted
    assert [(int(words[i // 32]) >> i % 32) & 1 for i in range(len(wanted))] == wanted


@pytest.mark.parametrize("size", [1, 2, 7, 32, 33, 64, 128, 256, 576, 5000])
def test_sums_of_products_fit_into_16_bits(impl, size):
    """The largest sums there can be, of either sign: were they to wrap, what is kept would be turned over."""
    most = levels(size)
    assert size * most**2 < 2**15
    query = torch.full((64, size), float(most))
    keys = torch.zeros(320, size)
    keys[64:80], keys[80:96] = most, -most
    out, found, _ = one_head(
        query, keys, keys, 2.0, impl, scale=20 / size / most**2, sinks=32, window=64, width=1, pooled=False
    )
    assert found[0, 64:80].all()
    assert not found[0, 32:64].any()
    assert not found[0, 80:192].any()
    assert out.isfinite().all()


def test_rounding_is_half_a_step_at_most_and_scales_are_shared_by_16():
    _, keys, _ = drawn(1, 1, 1, 45, 32)
    keys, rounding = keys[0, 0].clone(), Rounding(levels(32))
    keys[16:32] *= 100
    shifted = keys - keys.mean(0)
    for run in range(0, 45, 16):
        part = shifted[run : run + 16]
        step = part.abs().max() / levels(32)
        steps = small_keys(keys, rounding)[run : run + 16] / step
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
        assert float((small_keys(keys, rounding)[run : run + 16] - part).abs().max()) <= float(step) * 0.501
    step = shifted.abs().amax(1, keepdim=True) / levels(32)
    assert bool(((small_queries(shifted, rounding) - shifted).abs() <= step * 0.501).all())


def test_subtracting_the_mean_key_changes_nothing(impl):
    query, keys, values = drawn(2, 1, 128, 500, 16)
    plain = sparse(query, keys, values, 0.01, impl, with_map=True, width=1)
    moved = sparse(query, keys + 8.0, values, 0.01, impl, with_map=True, width=1)
    assert float((plain.map != moved.map).float().mean()) < 0.01
    assert float((plain.out - moved.out).norm() / plain.out.norm()) < 0.01


def test_refuses_what_does_not_fit():
    query, keys, values = drawn(4, 2, 70, 100, 16)
    reach, tau = Reach(), torch.zeros(4)
    for bad in (
        (query[:, :3], keys, values),
        (query, keys[..., :8], values),
        (query, keys, values[:, :, 1:]),
    ):
        with pytest.raises(ValueError, match="do not fit query"):
            kernels.sale_attention(*bad, tau[: bad[0].shape[1]], scale=1.0, reach=reach)
    with pytest.raises(ValueError, match="do not fit query"):
        kernels.sale_attention(query, keys[:, :, :60], values[:, :, :60], tau, scale=1.0, reach=reach)
    for bad in (torch.zeros(3), torch.full((4,), -1.0), torch.full((4,), torch.nan), torch.zeros(4).double()):
        with pytest.raises(ValueError, match="tau"):
            kernels.sale_attention(query, keys, values, bad, scale=1.0, reach=reach)
    with pytest.raises(ValueError, match="width=3 is not one of 1, 2, 4"):
        kernels.sale_attention(query, keys, values, tau, scale=1.0, reach=Reach(width=3))
    with pytest.raises(ValueError, match="rows=48 is not one of 16, 32, 64"):
        kernels.sale_attention(query, keys, values, tau, scale=1.0, reach=Reach(rows=48))
    with pytest.raises(ValueError, match="window=-1"):
        kernels.sale_attention(query, keys, values, tau, scale=1.0, reach=Reach(window=-1))
    for bad in ((1, 2), (-1,), (100,)):
        with pytest.raises(ValueError, match="padding"):
            kernels.sale_attention(query, keys, values, tau, scale=1.0, reach=reach, padding=bad)
