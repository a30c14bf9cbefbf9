"""Causal attention of prompts against float64, within what rounding may do to the data at hand."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from keyhole import kernels
from keyhole.kernels.attention.prompt import Unit, best_unit

DTYPES = (torch.float32, torch.bfloat16)


class _Asked(NamedTuple):
    query: Tensor
    keys: Tensor
    values: Tensor


def _asked(
    batch: int, heads: int, kv: int, queries: int, tokens: int, size: int, width: int, dtype, *, spread=1.0
) -> _Asked:
    """Inside memory that holds NaN wherever nothing may be read; heads lie as models have them."""
    generator = torch.Generator().manual_seed(tokens + size)

    def inside(count: int, many: int, numbers: int) -> Tensor:
        held = torch.full((batch, many + 3, count + 1, numbers + 5), math.nan, dtype=dtype)
        part = held.transpose(1, 2)[:, :count, :many, :numbers]
        part.copy_(torch.randn(part.shape, generator=generator) * spread)
        return part

    return _Asked(inside(heads, queries, size), inside(kv, tokens, size), inside(kv, tokens, width))


def _wanted(asked: _Asked, scale, padding=None, softcap=None, sinks=None) -> tuple[Tensor, Tensor]:
    """Attention in float64, and what it is of magnitudes of values."""
    query, keys, values = (part.double() for part in asked)
    groups = query.shape[1] // keys.shape[1]
    keys, values = (part.repeat_interleave(groups, 1) for part in (keys, values))
    logits = query @ keys.mT * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    queries, tokens = logits.shape[-2:]
    slots = torch.arange(tokens)
    shown = slots <= (slots[tokens - queries :]).view(-1, 1)
    starts = torch.tensor(padding or [0] * len(query)).view(-1, 1, 1, 1)
    logits = logits.masked_fill(~(shown & (slots >= starts)), -math.inf)
    if sinks is not None:
        logits = torch.cat([logits, sinks.double().view(-1, 1, 1).expand(*logits.shape[:-1], 1)], -1)
    weights = logits.softmax(-1)[..., :tokens].nan_to_num()
    return weights @ values, weights @ values.abs()


def _bound(asked: _Asked, scale: float, magnitudes: Tensor) -> Tensor:
    """Of errors: float32 sums of logits, weights rounded, an exponential, the result."""
    query, keys, _ = (part.double().abs() for part in asked)
    groups = query.shape[1] // keys.shape[1]
    longest = (query @ keys.repeat_interleave(groups, 1).mT).amax((-1, -2), keepdim=True) * scale
    logits = (query.shape[-1] + 8) * 2.0**-24 * longest
    rounding = 2.0**-8 if asked.values.dtype == torch.bfloat16 else 2.0**-21
    exponential = 1e-4 if asked.values.dtype == torch.bfloat16 else 2.0**-21
    return (2 * logits + 2 * rounding + 2 * exponential) * magnitudes + 1e-30


def _check(asked: _Asked, impl: str, *, unit=Unit.SQUARES, padding=(), softcap=None, sinks=None) -> Tensor:
    scale = asked.query.shape[-1] ** -0.5
    options = {"scale": scale, "padding": padding, "softcap": softcap}
    out = kernels.prompt_attention(*asked, **options, sink_logits=sinks, impl=impl, unit=unit)
    wanted, magnitudes = _wanted(asked, **options, sinks=sinks)
    assert out.dtype == asked.query.dtype
    error = (out.double() - wanted).abs()
    assert bool((error <= _bound(asked, scale, magnitudes)).all()), float((error / magnitudes).max())
    return out


SHAPES = [
    (1, 3, 1, 64, 64, 64, 64),
    (2, 6, 2, 77, 200, 80, 80),
    (1, 2, 2, 300, 300, 128, 96),
    (1, 3, 3, 33, 700, 256, 256),
    (1, 9, 3, 129, 257, 64, 64),
    (1, 4, 1, 2, 31, 96, 96),
    (1, 2, 1, 1, 130, 17, 5),
    (1, 1, 1, 16, 16, 1, 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_float64_within_rounding(impl: str, shape, dtype):
    _check(_asked(*shape, dtype), impl)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("shape", SHAPES)
def test_each_unit_of_bfloat16(unit: Unit, shape):
    if unit > best_unit():
        pytest.skip(f"this CPU, or this level, has no {unit.name.lower()}")
    _check(_asked(*shape, torch.bfloat16), "native", unit=unit)
    _check(_asked(*shape, torch.bfloat16, spread=4.0), "native", unit=unit)


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_on_the_left(impl: str, dtype):
    asked = _asked(3, 4, 2, 90, 150, 64, 64, dtype)
    out = _check(asked, impl, padding=(0, 130, 150))
    assert (out[1, :, :70] == 0).all()
    assert (out[2] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_padding_holds_is_not_read(impl: str, dtype):
    asked = _asked(2, 4, 2, 90, 150, 64, 64, dtype)
    for part in (asked.keys, asked.values):
        part[1, :, :100] = math.nan
    asked.query[1, :, :40] = math.nan
    scale, padding = 0.125, (0, 100)
    out = kernels.prompt_attention(*asked, scale=scale, padding=padding, impl=impl)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_capped_logits_and_sinks(impl: str, dtype):
    asked = _asked(1, 6, 2, 70, 170, 64, 64, dtype, spread=3.0)
    sinks = torch.randn(6, generator=torch.Generator().manual_seed(1)) * 4
    _check(asked, impl, softcap=5.0)
    _check(asked, impl, sinks=sinks)
    _check(asked, impl, softcap=5.0, sinks=sinks, padding=(20,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_of_a_prompt_give_what_the_whole_gives(impl: str, dtype):
    asked = _asked(1, 6, 2, 300, 300, 64, 64, dtype)
    whole = kernels.prompt_attention(*asked, scale=0.125, impl=impl)
    for begin, end in ((0, 100), (100, 101), (101, 300)):
        held = (part[:, :, :end] for part in (asked.keys, asked.values))
        part = kernels.prompt_attention(asked.query[:, :, begin:end], *held, scale=0.125, impl=impl)
        tolerance = 1e-6 if dtype == torch.float32 else 2.0**-7
        torch.testing.assert_close(part, whole[:, :, begin:end], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_that_is_not_a_number_is_alone(impl: str, dtype):
    asked = _asked(1, 2, 1, 40, 140, 64, 64, dtype)
    clean = kernels.prompt_attention(*asked, scale=0.125, impl=impl)
    asked.query[0, 1, 7, 3] = math.nan
    out = kernels.prompt_attention(*asked, scale=0.125, impl=impl)
    assert out[0, 1, 7].isnan().all()
    out[0, 1, 7] = clean[0, 1, 7]
    assert torch.equal(out, clean)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_key_that_is_not_a_number_reaches_those_behind_it_only(impl: str, dtype):
    asked = _asked(1, 2, 1, 140, 140, 64, 64, dtype)
    clean = kernels.prompt_attention(*asked, scale=0.125, impl=impl)
    asked.keys[0, 0, 50, 3] = math.nan
    out = kernels.prompt_attention(*asked, scale=0.125, impl=impl)
    assert out[:, :, 50:].isnan().all()
    assert torch.equal(out[:, :, :50], clean[:, :, :50])


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_far_apart(impl: str, dtype):
    asked = _asked(1, 2, 1, 50, 300, 64, 64, dtype, spread=30.0)
    _check(asked, impl)
    asked.query.zero_()
    _check(asked, impl)


@pytest.mark.usefixtures("level")
def test_threads_change_nothing():
    asked = _asked(1, 6, 2, 200, 400, 64, 64, torch.bfloat16)
    one = kernels.prompt_attention(*asked, scale=0.125, impl="native")
    torch.set_num_threads(2)
    try:
        assert torch.equal(kernels.prompt_attention(*asked, scale=0.125, impl="native"), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.usefixtures("level")
def test_products_of_torch_are_right_between_calls():
    """Its products use tiles, too, by a configuration of their own."""
    asked = _asked(1, 2, 2, 64, 64, 64, 64, torch.bfloat16)
    x = torch.randn(200, 96, dtype=torch.bfloat16)
    before = x @ x.T
    kernels.prompt_attention(*asked, scale=0.125, impl="native")
    assert torch.equal(x @ x.T, before)


@pytest.mark.parametrize("change", [{"padding": (1,)}, {"padding": (-1, 0)}, {"scale": 0.0}])
def test_bad_arguments_are_named(change):
    asked = _asked(2, 2, 1, 3, 5, 8, 8, torch.float32)
    with pytest.raises(ValueError, match=next(iter(change))):
        kernels.prompt_attention(*asked, **({"scale": 1.0} | change))
    with pytest.raises(ValueError, match="do not fit"):
        kernels.prompt_attention(asked.query, asked.keys[:1], asked.values, scale=1.0)
    with pytest.raises(ValueError, match="do not fit"):
        kernels.prompt_attention(asked.query, asked.keys[:, :, :2], asked.values[:, :, :2], scale=1.0)
