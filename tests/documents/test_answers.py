"""Stored answers are those of one uninterrupted run: every method, every form, every place."""

import pytest

from keyhole.documents.recipes import stored_recipe
from keyhole.generation.decoding import CHUNK
from keyhole.methods import METHODS
from keyhole.methods.recipe import alone
from tests.documents.unsaved import BLOCK, QUESTION, TEXT, unsaved_answer
from tests.small import DROPPING, SELECTIVE, small

FORMED = [name for name in SELECTIVE if name not in ("shadowkv", "nosa")]
WHOLE = [*DROPPING, "shadowkv", "nosa"]


def recipe_of(name, kv_dtype=None):
    budgeted = "budget" in METHODS[name].options()
    return stored_recipe(alone(small(name, 0.1) if budgeted else small(name)), kv_dtype)


def answered(library, recipe, **asked):
    library.add(text=TEXT, name="d", method=recipe)
    return library.ask("d", QUESTION, max_new_tokens=8, **asked).tokens


@pytest.mark.parametrize("name", [name for name in METHODS if name not in WHOLE])
def test_documents_in_blocks(library, loaded, name):
    recipe = recipe_of(name)
    expected = unsaved_answer(loaded, recipe)
    assert answered(library, recipe) == expected
    assert library.ask("d", QUESTION, max_new_tokens=8, place="device").tokens == expected
    assert not library.document("d").whole


@pytest.mark.parametrize("name", WHOLE)
def test_documents_that_are_one_state(library, loaded, name):
    recipe = recipe_of(name)
    piece = 4 * BLOCK if name == "shadowkv" else CHUNK
    assert answered(library, recipe) == unsaved_answer(loaded, recipe, piece=piece)
    assert library.document("d").whole


@pytest.mark.parametrize(
    ("name", "kv_dtype"),
    [("pqcache", "int8"), ("dense", "int4"), ("quest", "int4")]
    + [
        pytest.param(name, kv_dtype, marks=pytest.mark.exhaustive)
        for name in [*FORMED, "dense"]
        for kv_dtype in ("int8", "int4")
    ],
)
def test_quantised_forms(library, loaded, name, kv_dtype):
    recipe = recipe_of(name, kv_dtype)
    expected = unsaved_answer(loaded, recipe)
    assert answered(library, recipe) == expected
    assert library.ask("d", QUESTION, max_new_tokens=8, place="host").tokens == expected


@pytest.mark.parametrize("name", ["pqcache", "quest", "tokenselect"])
def test_tokens_of_a_question_share_no_selection_beyond_the_range(library, loaded, name):
    """They are read as a prompt's chunk, by what each of them asks for."""
    options = "renumber=true, sparse_prefill=true, chunk=64, window=16, sinks=4, distance=16"
    recipe = stored_recipe(f"{name}(budget=40, {options}, dense_below=0)")
    assert answered(library, recipe) == unsaved_answer(loaded, recipe, exact=True)


@pytest.mark.parametrize("name", ["pqcache", "quest", "tokenselect"])
def test_mass_budgets(library, loaded, name):
    recipe = stored_recipe(small(name, "mass=0.9"))
    assert answered(library, recipe) == unsaved_answer(loaded, recipe)
