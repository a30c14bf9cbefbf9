"""Block-sparse attention and its gradients against masks written out, and against finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.training.continued import tiles
from keyhole.training.continued.block_sparse import block_sparse_attention

D, DV, SCALE = 5, 3, 0.4


def written_out(query, key, value, blocks, block, bias):
    """One query after the other; autograd does the rest."""
    group = query.shape[1] // key.shape[1]
    out = []
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for t in range(query.shape[2]):
                g = h // group
                named = set(blocks[b, g, t].tolist()) - {-1}
                keys = [j for j in range(t + 1) if j // block in named]
                logits = key[b, g, keys] @ query[b, h, t] * SCALE + bias[b, g, keys]
                out.append(logits.softmax(0) @ value[b, g, keys])
    return torch.stack(out).view(*query.shape[:3], -1)


def inputs(seed, rows, heads, group, tokens, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    query = drawn(rows, heads * group, tokens, D)
    return query, drawn(rows, heads, tokens, D), drawn(rows, heads, tokens, DV), drawn(rows, heads, tokens)


def drawn_lists(seed, rows, heads, tokens, block, width):
    """Different blocks in any order, later ones and unused entries among them."""
    generator = torch.Generator().manual_seed(seed)
    count = -(-tokens // block)
    order = torch.rand(rows, heads, tokens, count + width, generator=generator).argsort(-1)[..., :width]
    return order.where(order < count, -1).int()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 2),
    heads=st.integers(1, 2),
    group=st.integers(1, 3),
    tokens=st.integers(1, 20),
    block=st.integers(1, 7),
    width=st.integers(1, 5),
)
def test_as_written_out(seed, rows, heads, group, tokens, block, width):
    given = inputs(seed, rows, heads, group, tokens)
    blocks = drawn_lists(seed, rows, heads, tokens, block, width)
    out = block_sparse_attention(*given[:3], blocks, block=block, scale=SCALE, bias=given[3])
    expected = written_out(*given[:3], blocks, block, given[3])
    torch.testing.assert_close(out, expected)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=out.dtype)
    found = torch.autograd.grad(out, given, upstream)
    wanted = torch.autograd.grad(expected, given, upstream, materialize_grads=True)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("tokens", "block"), [(1, 4), (9, 4), (11, 3)])
def test_gradients_are_finite_differences(tokens, block, monkeypatch):
    monkeypatch.setattr(tiles, "ROWS", 4)
    given = inputs(1, 2, 2, 2, tokens)
    blocks = drawn_lists(2, 2, 2, tokens, block, 3)

    def attend(query, key, value, bias):
        return block_sparse_attention(query, key, value, blocks, block=block, scale=SCALE, bias=bias)

    assert torch.autograd.gradcheck(attend, given)


def test_tiles_of_queries_change_nothing(monkeypatch):
    given, blocks = inputs(3, 1, 2, 2, 150), drawn_lists(3, 1, 2, 150, 8, 6)
    found = []
    for rows in (1, 64, 1000):
        monkeypatch.setattr(tiles, "ROWS", rows)
        out = block_sparse_attention(*given[:3], blocks, block=8, scale=SCALE, bias=given[3])
        found.append([out, *torch.autograd.grad(out.square().sum(), given)])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_all_blocks_are_dense_attention():
    query, key, value, _ = inputs(4, 2, 2, 3, 70)
    blocks = torch.arange(9, dtype=torch.int32).expand(2, 2, 70, 9)
    out = block_sparse_attention(query, key, value, blocks, block=8, scale=SCALE)
    dense = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=SCALE, enable_gqa=True
    )
    torch.testing.assert_close(out, dense)
    torch.testing.assert_close(
        torch.autograd.grad(out.square().sum(), (query, key, value)),
        torch.autograd.grad(dense.square().sum(), (query, key, value)),
    )


@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
def test_two_calls_without_a_bias_are_the_bias(spread):
    """The published training form: values times exp(e), over exp(e) as the values of a second call."""
    query, key, value, bias = inputs(5, 2, 2, 2, 40)
    bias = (bias * spread).detach().requires_grad_()
    blocks = drawn_lists(5, 2, 2, 40, 4, 6)
    blocks[..., 0] = torch.arange(40, dtype=torch.int32) // 4  # every query reads something

    def call(values):
        return block_sparse_attention(query, key, values, blocks, block=4, scale=SCALE)

    weight = bias.exp()[..., None]
    twice = call(value * weight) / call(weight)
    direct = block_sparse_attention(query, key, value, blocks, block=4, scale=SCALE, bias=bias)
    torch.testing.assert_close(direct, twice)
    given = (query, key, value, bias)
    torch.testing.assert_close(
        torch.autograd.grad(direct.square().sum(), given), torch.autograd.grad(twice.square().sum(), given)
    )


def test_a_query_that_reads_nothing_is_zero_and_learns_nothing():
    given = inputs(6, 1, 1, 2, 6)
    blocks = torch.full((1, 1, 6, 2), -1, dtype=torch.int32)
    blocks[0, 0, 3:, 0] = 1
    out = block_sparse_attention(*given[:3], blocks, block=3, scale=SCALE, bias=given[3])
    assert (out[:, :, :3] == 0).all()
    gradients = torch.autograd.grad(out.sum(), given)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all((gradient[:, :, :3] == 0).all() for gradient in gradients)


def test_half_precision_computes_in_float32():
    given = inputs(7, 1, 2, 2, 90)
    blocks = drawn_lists(7, 1, 2, 90, 8, 4)
    exact = block_sparse_attention(*given[:3], blocks, block=8, scale=SCALE, bias=given[3])
    half = [x.detach().bfloat16().requires_grad_() for x in given]
    out = block_sparse_attention(*half[:3], blocks, block=8, scale=SCALE, bias=half[3])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=0.05, atol=0.05)
    assert {x.dtype for x in torch.autograd.grad(out.sum(), half)} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (torch.tensor([[[[3]] * 6]]), "0 to 2"),
        (torch.tensor([[[[-2]] * 6]]), "-2"),
        (torch.zeros(1, 1, 6, 1), "int32"),
    ],
)
def test_lists_that_name_no_block_are_refused(blocks, message):
    given = inputs(8, 1, 1, 1, 6)
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(*given[:3], blocks, block=2, scale=SCALE)
