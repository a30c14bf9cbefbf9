"""Softmax weights of many queries, summed by key, and the noise of their logits."""

import math

import numpy as np
import pytest
import torch

from keyhole import kernels
from keyhole.kernels import Noise, head_words, query_words
from tests.oracles_eviction_keyformer import noise as defined

CPU = torch.device("cpu")


def case(rows=2, heads=3, queries=4, slots=37, seed=0):
    """Logits that are poison where a query may not look, and the first slot of each row."""
    make = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, heads, queries, slots, generator=make)
    first = torch.randint(0, slots + 1, (rows,), generator=make)
    index = torch.arange(slots)
    unseen = (index > index[slots - queries :].view(-1, 1)) | (index < first.view(-1, 1, 1, 1))
    return logits.masked_fill(unseen, math.nan), first


def noise_of(rows, heads, queries, slots):
    every = head_words(5, 1, rows * heads, CPU).view(rows, heads, 1, 2)
    places = (torch.arange(rows * slots, dtype=torch.int32) * 3 - 5).view(rows, slots)
    return Noise(query_words(every, torch.arange(queries, dtype=torch.int32)), places)


def by_definition(logits, first, noise=None, temperature=1.0, sink_logits=None):
    rows, heads, queries, slots = logits.shape
    sums = np.zeros((rows, slots))
    added = np.zeros(logits.shape) if noise is None else noise.sample().double().expand(logits.shape).numpy()
    for row, head, query in np.ndindex(rows, heads, queries):
        seen = slice(int(first[row]), slots - queries + query + 1)
        exponents = (logits[row, head, query].double().numpy() + added[row, head, query])[seen] / temperature
        weights = np.exp(exponents - np.max(exponents, initial=-1e30))
        sink = 0.0
        if sink_logits is not None and len(exponents):
            sink = math.exp(float(sink_logits[row, head]) / temperature - exponents.max())
        if len(exponents) and np.isfinite(weights).all():
            sums[row, seen] += weights / (weights.sum() + sink)
    return torch.from_numpy(sums)


def check(impl, logits, first, **options):
    rows, _, _, slots = logits.shape
    begin = torch.rand(rows, slots)
    wide = torch.full((rows, slots + 9), math.nan)  # sums may be a part of a wider buffer
    sums = wide[:, :slots].copy_(begin)
    kernels.add_columns(sums, logits, first, impl=impl, **options)
    expected = by_definition(logits, first, **options)
    torch.testing.assert_close((sums - begin).double(), expected, rtol=1e-4, atol=3e-6)
    assert wide[:, slots:].isnan().all()


@pytest.mark.parametrize("slots", [1, 7, 8, 16, 31, 33, 100, 1000])
@pytest.mark.parametrize("noisy", [False, True])
def test_sizes(impl, slots, noisy):
    queries = min(slots, 5)
    noise = noise_of(2, 3, queries, slots) if noisy else None
    check(impl, *case(queries=queries, slots=slots), noise=noise, temperature=1.3)


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("heads", [1, 4, 7])
def test_rows_heads_and_sinks(impl, rows, heads):
    sinks = torch.linspace(-5, 50, rows * heads).view(rows, heads)
    check(impl, *case(rows, heads, 37), sink_logits=sinks, temperature=0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [3, 20, 36])
def test_queries_that_are_not_finite_add_nothing(impl, bad, place):
    logits, first = case(queries=1, slots=37, seed=1)
    logits[:, 1, 0, place] = bad
    first[:] = 2
    logits[:, [0, 2]] = logits[:, [0, 2]].nan_to_num()
    sums = torch.zeros(2, 37)
    kernels.add_columns(sums, logits, first, impl=impl)
    torch.testing.assert_close(sums.sum(1), torch.full((2,), 2.0))


def test_weights_that_vanish(impl):
    """Logits far apart, and ones of -inf, which only lose their weight."""
    logits = torch.tensor([0.0, -1e4, 300.0, -math.inf, 300.0]).view(1, 1, 1, 5)
    sums = torch.zeros(1, 5)
    kernels.add_columns(sums, logits, torch.tensor([0]), impl=impl)
    torch.testing.assert_close(sums, torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.5]]))


def test_operands_are_checked():
    logits, first = case()
    with pytest.raises(ValueError, match="do not fit logits"):
        kernels.add_columns(torch.zeros(2, 36), logits, first)
    with pytest.raises(TypeError, match="float32"):
        kernels.add_columns(torch.zeros(2, 37), logits.double(), first)
    with pytest.raises(ValueError, match="expected int64"):
        kernels.add_columns(torch.zeros(2, 37), logits, first.int())
    with pytest.raises(ValueError, match="more than the 3 slots"):
        kernels.add_columns(torch.zeros(2, 3), logits[..., :3], first)
    with pytest.raises(ValueError, match="does not fit"):
        kernels.add_columns(torch.zeros(2, 37), logits, first, noise=noise_of(2, 3, 4, 36))
    noise = noise_of(2, 3, 4, 37)._replace(kind="gaussian")
    with pytest.raises(RuntimeError, match="no native code"):
        kernels.add_columns(torch.zeros(2, 37), logits, first, noise=noise, impl="native")


@pytest.mark.parametrize("kind", kernels.NOISES)
def test_noise_is_its_definition(kind):
    heads, queries = head_words(9, 4, 3, CPU).view(1, 3, 1, 2), torch.tensor([0, 7], dtype=torch.int32)
    places = torch.tensor([[0, 1, 2, 1 << 20, 77]], dtype=torch.int32)
    found = Noise(query_words(heads, queries), places, kind).sample().expand(1, 3, 2, 5)
    for head in range(3):
        for at, query in enumerate(queries.tolist()):
            expected = defined(kind, 9, 4, head, query, places[0].numpy())
            np.testing.assert_allclose(found[0, head, at], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gumbel", "gaussian"])
def test_noise_is_distributed_as_it_should_be(kind):
    """Moments, extremes, and no echo between neighbouring keys, queries, heads and layers."""
    places = torch.arange(4096, dtype=torch.int32).view(1, -1)
    words = (query_words(head_words(0, layer, 8, CPU).view(1, 8, 1, 2), places[0, :16]) for layer in (0, 1))
    one, other = (Noise(each, places, kind).sample().double() for each in words)
    assert abs(float(one.mean()) - 0.5772) < 0.01
    assert abs(float(one.std()) - 1.2825) < 0.01
    assert 8 < float(one.max()) < 17 if kind == "gumbel" else 5 < float(one.max()) < 8
    centred = (one - one.mean()) / one.std()
    neighbours = {
        "keys": (centred[..., 1:], centred[..., :-1]),
        "queries": (centred[:, :, 1:], centred[:, :, :-1]),
        "heads": (centred[:, 1:], centred[:, :-1]),
        "queries and keys": (centred[:, :, 1:, 1:], centred[:, :, :-1, :-1]),
        "layers": (centred, (other - other.mean()) / other.std()),
    }
    for left, right in neighbours.values():
        assert abs(float((left * right).mean())) < 0.008
