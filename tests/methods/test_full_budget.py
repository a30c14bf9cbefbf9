"""Full budget equals dense attention: for every method, at any shape, length, group size and padding."""

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.methods import METHODS
from tests.layers import Layer, check_dense
from tests.small import BY_MASS, EXACT, SELECTIVE, WRAPPERS

LENGTHS = [1, 31, 63, 100]
# Options that let a method work at the lengths of a test: its index needs no more than some ten tokens.
SMALL = {
    "pqcache": "subspaces=4, bits=3, iterations=2",
    "a2ats": "iterations=2",
    # Of a rank that loses nothing.
    "shadowkv": "rank=384, chunk=4, outliers=2",
    "mpcache": "keep=1.0, fine=2, coarse=4",
    "clusterkv": "tokens=5, iterations=3",
    "retroinfer": "tokens=5, iterations=3",
}


def spec_of(name, budget):
    """The method at a budget, where it has one."""
    if name == "tail":
        return f"{name} + {spec_of('oracle', budget)}"
    if name in WRAPPERS:
        return f"{name} + {spec_of('snapkv', budget)}"
    options = [SMALL.get(name, "")]
    if "budget" in {field.name for field in fields(METHODS[name])}:
        options += [budget, "sinks=2, window=3"]
    return f"{name}({', '.join(option for option in options if option)})"


@st.composite
def shapes(draw):
    length = draw(st.sampled_from(LENGTHS))
    batch = draw(st.integers(1, 3))
    padding = draw(st.one_of(st.none(), st.lists(st.integers(0, length - 1), min_size=batch, max_size=batch)))
    return {
        "length": length,
        "batch": batch,
        "padding": padding,
        "kv_heads": draw(st.integers(1, 3)),
        "groups": draw(st.integers(1, 8)),
        "size": draw(st.sampled_from([8, 16, 24, 64, 128])),
        "softcap": draw(st.sampled_from([None, 3.0])),
        "seed": draw(st.integers(0, 99)),
    }


def check(spec, length, pieces, **shape):
    """The prompt in pieces, then steps; returns how many steps read by selection."""
    layer = Layer(spec, **shape)
    for piece in pieces:
        layer.append(piece)
        check_dense(layer, layer.attend(piece), piece)
    assert layer.length == length
    selective = 0
    for _ in range(3):
        layer.append(1)
        check_dense(layer, layer.attend())
        selective += layer.observed is not None
    return selective


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=15)
@given(shapes(), st.integers(0, 99))
def test_all_tokens(name, shape, cut):
    length = shape["length"]
    cut %= length
    pieces = [length - cut, cut] if cut else [length]
    assert check(spec_of(name, "budget=1.0"), pieces=pieces, **shape) == 0


@pytest.mark.parametrize("name", ["dense", *BY_MASS])
@settings(max_examples=15)
@given(shapes())
def test_all_of_the_mass(name, shape):
    """The path that selects, made to select everything."""
    spec = spec_of(name, "mass=1.0, floor=1000000")
    selective = check(spec, pieces=[shape["length"]], **shape)
    assert selective in ((0, 3) if shape["length"] < 31 else (0,) if "mass" not in spec else (3,))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("budget", ["budget=1.0", "budget=2003", "mass=1.0, floor=1000000"])
def test_a_long_context(name, budget):
    if name not in ("dense", *BY_MASS) and "mass" in budget:
        pytest.skip("how many tokens it keeps and reads follows from lengths")
    layer = Layer(spec_of(name, budget), groups=4, size=32, batch=2, padding=[0, 1234])
    layer.append(2000)
    for _ in range(3):
        layer.append(1)
        check_dense(layer, layer.attend())


@pytest.mark.parametrize("name", SELECTIVE)
def test_a_small_budget_is_not_dense(name):
    """The tests above would see a difference, if there were one."""
    layer = Layer(spec_of(name, "budget=2"))
    layer.append(100)
    layer.append(1)
    out = layer.attend()
    with pytest.raises(AssertionError):
        check_dense(layer, out)
