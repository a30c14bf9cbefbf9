"""What methods say of themselves, against what their layers hold and read."""

from dataclasses import fields, replace

import pytest
import torch

from keyhole.core.budget import Budget
from keyhole.methods import METHODS, RetrievalMethod
from keyhole.methods.facts import value as facts_value
from keyhole.methods.sizes import Shape, measure, measure_storage
from keyhole.storage import KV_DTYPES, PLACES
from tests.docs import script

FORMULA = script("methods").formula

_SMALL = {"sample": 512, "rank": 24, "subspaces": 8, "block": 32, "tokens": 32}
_ODD = {
    "sample": 256,
    "bits": 6,
    "rotate": False,
    "rank": 40,
    "chunk": 4,
    "page": 32,
    "outliers": 3,
    "block": 16,
    "tokens": 16,
}
_SHAPES = {
    "float32, unequal sizes": (Shape(2, 32, 16, torch.float32), _SMALL),
    "bfloat16": (Shape(3, 64, 64, torch.bfloat16), _ODD),
}


def letters(shape, **more):
    known = {"D": shape.keys, "Dv": shape.values, "e": shape.dtype.itemsize, "Hkv": shape.kv_heads}
    return known | more


def with_options(kind, options):
    known = {field.name for field in fields(kind)}
    options = options | ({"bits": 4} if kind.name == "quantised" else {})
    if kind.name in ("infllm_v2", "nosa"):  # whose own read all of so few tokens
        options = options | {"window": 64, "budget": Budget(fraction=0.1)}
    return replace(kind(), **{name: value for name, value in options.items() if name in known})


@pytest.mark.parametrize("case", _SHAPES)
@pytest.mark.parametrize("name", METHODS)
def test_formulas_are_what_is_measured(name, case):
    shape, options = _SHAPES[case]
    method = with_options(METHODS[name], options)
    own = {field.name: getattr(method, field.name) for field in fields(method)}
    if isinstance(method, RetrievalMethod):
        own |= method.letters(shape.keys, shape.kv_heads)

    def value(formula, tokens=0):
        return facts_value(formula, letters(shape, N=tokens, **own))

    found = measure(method, shape, tokens=1024)
    facts = method.facts
    assert found.kept == pytest.approx(value(facts.kept))
    assert found.index == pytest.approx(value(facts.index))
    assert found.row == pytest.approx(value(facts.row))
    assert found.once == pytest.approx(value(facts.scan))
    assert found.scan * 4096 + found.once == pytest.approx(value(facts.scan, 4096))


@pytest.mark.parametrize("name", METHODS)
def test_formulas_of_products_can_be_read(name):
    method = METHODS[name]()
    own = {field.name: getattr(method, field.name) for field in fields(method)}
    known = letters(Shape(), N=4096, R=500, G=4)
    if isinstance(method, RetrievalMethod):
        known |= method.letters(128, 8)
    assert facts_value(method.facts.products, own | known) >= 0


@pytest.mark.parametrize("name", METHODS)
def test_differing_options_exist_and_every_option_is_told(name):
    kind = METHODS[name]
    known = {field.name for field in fields(kind)}
    assert {differs.option for differs in kind.facts.differs} <= known
    told = {option: declared.help for option, (declared, _) in kind.options().items()}
    for option in known:
        assert told[option].endswith(".")


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [Shape(2, 32, 16, torch.float32), Shape(3, 64, 64)], ids=str)
def test_bytes_of_a_token_on_each_tier(place, kv_dtype, shape):
    expected = facts_value(FORMULA(kv_dtype), letters(shape))
    found = measure_storage(place, kv_dtype, shape)
    assert found.row == expected
    assert found.held == {place: expected}
