"""What methods say of themselves, against what their layers hold and read."""

from dataclasses import fields, replace
from math import ceil

import pytest
import torch

from keyhole.cli.markdown import FORMS
from keyhole.methods import METHODS
from keyhole.methods.sizes import Shape, measure, measure_storage
from keyhole.storage import PLACES

_SMALL = {"sample": 512, "rank": 24, "subspaces": 8}
_ODD = {"sample": 256, "bits": 6, "rotate": False, "rank": 40, "chunk": 4, "page": 32, "outliers": 3}
_SHAPES = {
    "float32, unequal sizes": (Shape(2, 32, 16, torch.float32), _SMALL),
    "bfloat16": (Shape(3, 64, 64, torch.bfloat16), _ODD),
}


def letters(shape, **more):
    known = {"D": shape.keys, "Dv": shape.values, "e": shape.dtype.itemsize, "Hkv": shape.kv_heads}
    return {"ceil": ceil} | known | more


def with_options(kind, options):
    known = {field.name for field in fields(kind)}
    return replace(kind(), **{name: value for name, value in options.items() if name in known})


@pytest.mark.parametrize("case", _SHAPES)
@pytest.mark.parametrize("name", METHODS)
def test_formulas_are_what_is_measured(name, case):
    shape, options = _SHAPES[case]
    method = with_options(METHODS[name], options)
    own = {field.name: getattr(method, field.name) for field in fields(method)}
    if name == "pqcache":
        own |= {"M": own["subspaces"] or 16, "C": 2 ** own["bits"]}
    if name == "quest":
        own["page"] = own["page"] or max(4, shape.keys // 8)
    if name == "shadowkv":
        own["chunk"] = own["chunk"] or max(4, shape.keys // 16)
    if name == "a2ats":
        own["C"] = own["sample"] // 8

    def value(formula, tokens=0):
        return eval(formula, letters(shape, N=tokens, **own))

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
    known = letters(Shape(), N=4096, R=500, G=4, M=32, C=16)
    own |= {name: own[name] or 16 for name in ("page", "chunk", "rank") if name in own}
    assert eval(method.facts.products, known | own) >= 0


@pytest.mark.parametrize("name", METHODS)
def test_differing_options_exist_and_every_option_is_told(name):
    kind = METHODS[name]
    known = {field.name for field in fields(kind)}
    assert {differs.option for differs in kind.facts.differs} <= known
    told = "".join(base.__doc__ or "" for base in kind.__mro__)
    for option in known:
        assert f" {option}: " in told


@pytest.mark.parametrize("keys", FORMS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [Shape(2, 32, 16, torch.float32), Shape(3, 64, 64)], ids=str)
def test_bytes_of_a_token_on_each_tier(place, keys, shape):
    expected = eval(FORMS[keys], letters(shape))
    found = measure_storage(place, keys, shape)
    assert found.row == expected
    assert found.held == {place: expected}
