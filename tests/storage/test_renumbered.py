"""Decode steps whose tokens are moved to positions without gaps, against a brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.core.budget import Budget
from keyhole.core.rope import PlainRope
from keyhole.methods import Recipe
from keyhole.storage import RenumberedStorage
from tests import oracles, oracles_positions
from tests.layers import Layer, check_dense, slots_read

OPTIONS = "sinks=3, window=5, dense_below=0, renumber=true"


def spec(options):
    return f"tokenselect({options}, {OPTIONS})"


OTHERS = [
    f"pqcache(budget=7, subspaces=4, bits=3, iterations=2, {OPTIONS})",
    f"pqcache(budget=0.3, subspaces=4, bits=3, iterations=2, distance=20, {OPTIONS})",
    f"quest(budget=7, page=3, {OPTIONS})",
    f"quest(budget=0.3, page=4, distance=20, {OPTIONS})",
]


def check(layer, out):
    """Each row attends to what it read, renumbered from 0 on."""
    for row, read in enumerate(slots_read(layer)):
        query, keys, values = (
            oracles.array(part[row]) for part in (layer.query[:, :, 0], layer.keys, layer.values)
        )
        wanted = oracles_positions.renumbered_attention(
            query, layer.length - 1, keys, values, read, layer.starts[row], scale=layer.logits.scale
        )
        np.testing.assert_allclose(out[row, :, 0], wanted, rtol=1e-3, atol=1e-3)


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 3), st.booleans(), st.integers(0, 30), st.integers(0, 99))
def test_a_step_is_a_brute_force(budget, groups, per_head, padding, seed):
    layer = Layer(
        spec(f"budget={budget}, per_head={per_head}"),
        batch=2,
        padding=[0, padding],
        groups=groups,
        size=8,
        seed=seed,
    )
    layer.append(40)
    for _ in range(3):
        layer.append(1)
        check(layer, layer.attend())


@pytest.mark.parametrize(
    "method",
    [*map(spec, ["budget=7", "budget=0.3", "budget=7, distance=20", "budget=7, reuse=1.0"]), *OTHERS],
)
def test_a_life(method):
    layer = Layer(method, batch=2, padding=[0, 11], size=8)
    layer.append(50)

    def steps(count):
        for _ in range(count):
            layer.append(1)
            check(layer, layer.attend())

    steps(3)
    layer.crop(45)
    layer.append(2)
    steps(2)
    layer.reorder([1, 1, 0])
    steps(2)
    layer.append(9)
    check_dense(layer, layer.attend(9), 9)
    steps(2)
    fresh = Layer(method, size=8).cache
    fresh.restore({k: v.clone() for k, v in layer.cache.state().items()}, layer.cache.indexed)
    found = fresh.attend(layer.query, layer.logits, mask=layer.mask())
    torch.testing.assert_close(found, layer.cache.attend(layer.query, layer.logits, mask=layer.mask()))


def test_a_row_that_drops_nothing_is_dense():
    """Its 12 tokens are all read, in a step that reads 15 of the other row's 40."""
    layer = Layer(spec("budget=7"), batch=2, padding=[0, 28], size=8)
    layer.append(39)
    layer.append(1)
    out = layer.attend()
    assert layer.observed is not None
    np.testing.assert_allclose(out[1, :, 0], layer.dense()[1, :, 0], rtol=1e-3, atol=1e-4)
    with pytest.raises(AssertionError):
        check_dense(layer, out)


@pytest.mark.parametrize("method", ["tokenselect", "pqcache", "quest"])
def test_everything_is_dense(method):
    layer = Layer(f"{method}(budget=1.0, {OPTIONS})", size=8)
    layer.append(60)
    layer.append(1)
    check_dense(layer, layer.attend())


@pytest.mark.parametrize("method", ["tokenselect", "pqcache(iterations=2", "quest(page=4"])
@pytest.mark.parametrize("distance", ["", ", distance=9"])
def test_all_but_one_is_selected_and_nothing_moves_that_is_dense(method, distance):
    """The path that selects: what is left out is a token without weight."""
    separator = ", " if "(" in method else "("
    layer = Layer(f"{method}{separator}budget=52{distance}, {OPTIONS})", size=8)
    layer.append(61)
    layer.append(1)
    out = layer.attend()
    assert layer.observed is not None
    check(layer, out)


def test_true_positions_are_the_default():
    layers = [
        Layer(f"tokenselect(budget=7, sinks=3, window=5, dense_below=0{p})", size=8)
        for p in ("", ", renumber=false")
    ]
    outs = []
    for layer in layers:
        layer.append(60)
        layer.append(1)
        outs.append(layer.attend())
        with pytest.raises(AssertionError):
            check(layer, outs[-1])
    assert torch.equal(*outs)


def test_all_that_is_read_fits_a_short_range():
    """Two texts of which the same is read, once with 900 other tokens in between: the same attention."""
    outs = []
    for gap in (0, 900):
        layer = Recipe.parse(spec("budget=6, distance=5")).layers(1)[0]
        random = torch.Generator().manual_seed(0)
        bare = torch.randn(1, 2, 20, 8, generator=random)
        query = torch.randn(1, 4, 1, 8, generator=random)
        bare[:, :, 4:10, 0] += 50 * query[:, ::2, 0, :1].sign()
        query[:, :, :, 0] = 20 * query[:, ::2, :, 0].repeat_interleave(2, 1).sign()
        # Far from what the queries ask for.
        between = -bare[:, :, 4:5].expand(-1, -1, gap, -1)
        bare = torch.cat([bare[:, :, :10], between, bare[:, :, 10:]], dim=2)
        keys = PlainRope().rotate(bare, torch.arange(bare.shape[2]).unsqueeze(0))
        layer.append(keys, bare)
        newest = torch.full((1, 1), bare.shape[2] - 1)
        outs.append(layer.attend(PlainRope().rotate(query, newest), Layer("dense").logits))
    torch.testing.assert_close(*outs, rtol=1e-3, atol=1e-3)


def test_settle_comes_first():
    storage = RenumberedStorage(PlainRope(), Budget(tokens=4))
    rows = torch.randn(1, 1, 9, 8)
    storage.append(rows, rows)
    with pytest.raises(ValueError, match="settle"):
        storage.attend(rows[:, :, 0], torch.zeros(1, 1), torch.ones(1), Layer("dense").logits)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("mass=0.9", "mass=0.9"),
        ("budget=7, place=host", "place=host"),
        ("budget=7, kv_dtype=int8", "kv_dtype=int8"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Recipe.parse(spec(options))
    with pytest.raises(ValueError, match=says):
        Recipe.parse(f"quest({options}, {OPTIONS})")


def test_bfloat16():
    rows = torch.randn(1, 2, 30, 8).bfloat16()
    layer = Recipe.parse(spec("budget=4")).layers(1)[0]
    layer.append(rows, rows)
    out = layer.attend(rows[:, :, -1:], Layer("dense").logits)
    assert out.dtype == torch.bfloat16
    assert bool(out.isfinite().all())
