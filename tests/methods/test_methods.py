import dataclasses

import pytest

from keyhole.cache.layer import LayerCache
from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.methods import METHODS, Dense, Oracle, PQCache, Recipe
from keyhole.methods.recipe import alone


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is(name):
    kind = METHODS[name]
    assert kind.name == name
    assert name.isidentifier()
    assert name == name.lower()
    assert kind.paper
    assert kind.summary
    assert kind.__doc__
    assert "\n" not in kind.summary


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_value(name):
    method = METHODS[name]()
    assert method == METHODS[name]()
    assert hash(method) == hash(METHODS[name]())
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.name = "other"


@pytest.mark.parametrize("name", METHODS)
def test_layers_share_nothing_that_changes(name):
    recipe = alone(METHODS[name]())
    layers = recipe.layers(3) + recipe.layers(3)
    assert all(isinstance(layer, LayerCache) for layer in layers)
    for part in ("storage", "usage"):
        assert len({id(getattr(layer, part)) for layer in layers}) == 6
    selectors = [layer.selector for layer in layers if layer.selector is not None]
    assert len({id(selector) for selector in selectors}) == len(selectors) in (0, 6)


def test_a_recipe_of_no_layers():
    assert Recipe.parse("pqcache").layers(0) == []


@pytest.mark.parametrize("budget", [0.25, "25%", Budget(fraction=0.25)])
def test_budgets_are_read_wherever_they_come_from(budget):
    assert PQCache(budget=budget).budget == Budget(fraction=0.25)
    assert Oracle(budget=budget).budget == Budget(fraction=0.25)


@pytest.mark.parametrize(
    "options",
    [{"budget": -1}, {"budget": None}, {"sinks": True}, {"window": 0}, {"bits": 8.0}, {"rotate": "no"}],
    ids=str,
)
def test_refuses_options_out_of_range(options):
    with pytest.raises(SpecError):
        PQCache(**options)


def test_what_the_paper_sets_is_the_default_or_can_be_set():
    paper = Recipe.parse("pqcache(subspaces=2, bits=6, rotate=false)").stages[0]
    assert (paper.subspaces, paper.bits, paper.rotate) == (2, 6, False)
    assert (PQCache().sinks, PQCache().budget) == (32, Budget(fraction=0.1))


def test_dense_beside_a_method_changes_nothing():
    assert Recipe((Dense(), PQCache())).layers(1)[0].selector is not None
