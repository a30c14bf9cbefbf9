"""Which recipes read texts beyond a model's range."""

import pytest

from keyhole.core.break_even import BreakEven
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import Recipe
from keyhole.methods.beyond import beyond_recipe, check_beyond

BOTH = "renumber=true, sparse_prefill=true"


def chosen(method, positions=8192, tokens=100_000):
    return str(beyond_recipe(Recipe.parse(method), positions, tokens))


@pytest.mark.parametrize("method", ["tokenselect", "pqcache", "quest"])
def test_the_chosen_recipe_is_the_method_that_renumbers(method):
    found = beyond_recipe(Recipe.parse(method), 8192, 1_000_000)
    stage = found.retrieval
    assert stage.name == method
    assert (stage.budget.tokens, stage.window, stage.chunk, stage.sinks) == (2048, 512, 512, 128)
    assert stage.renumber
    assert stage.sparse_prefill
    assert stage.distance == 512
    check_beyond(found, 8192, 1_000_000)


def test_options_that_were_given_stay():
    found = beyond_recipe(Recipe.parse("quest(budget=300, page=4, window=100, dense_below=0)"), 8192, 20_000)
    stage = found.retrieval
    assert (stage.budget.tokens, stage.page, stage.window, stage.dense_below) == (300, 4, 100, 0)
    assert stage.distance == 100


@pytest.mark.parametrize(
    "method", ["dense", "snapkv", "oracle", "snapkv + pqcache", "sale + oracle", "delta"]
)
def test_others_give_way_to_tokenselect(method):
    found = beyond_recipe(Recipe.parse(method), 8192, 20_000)
    if "pqcache" not in method:
        assert [stage.name for stage in found.stages] == ["tokenselect"]


def test_weights_that_are_skipped_stay_skipped():
    assert [s.name for s in beyond_recipe(Recipe.parse("chess + oracle"), 8192, 20_000).stages] == [
        "chess",
        "tokenselect",
    ]
    assert [s.name for s in beyond_recipe(Recipe.parse("quest + chess + sale"), 8192, 20_000).stages] == [
        "chess",
        "quest",
    ]


@pytest.mark.parametrize("positions", [40, 128, 512, 2048, 4096, 8192, 131_072])
def test_small_ranges_get_small_recipes(positions):
    stage = beyond_recipe(Recipe.parse("pqcache"), positions, 100 * positions).retrieval
    assert stage.sinks + stage.window + stage.chunk + stage.budget.tokens <= positions
    assert stage.distance + stage.chunk <= positions


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("dense", "dense does not renumber positions"),
        ("oracle(budget=5)", "tokenselect"),
        ("snapkv", "--beyond-range"),
        ("pqcache", "renumber=true and sparse_prefill=true"),
        ("quest(renumber=true)", "needs sparse_prefill=true"),
        ("tokenselect(sparse_prefill=true)", "needs renumber=true"),
        (f"pqcache(budget=8000, {BOTH})", "at most 7,584 tokens"),
        (f"pqcache(budget=0.1, {BOTH})", "a budget of at most"),
        (f"pqcache(budget=5, window=9000, {BOTH})", "fewer sinks, window and chunk"),
        (f"quest(budget=5, distance=8000, {BOTH})", "at most 7,680"),
    ],
)
def test_what_cannot_be_read_is_refused(method, says):
    with pytest.raises(SpecError, match=says):
        check_beyond(Recipe.parse(method), 8192, 100_000)


def test_options_that_cannot_be_kept_are_refused():
    for method, says in (("pqcache(place=host)", "place=host"), ("quest(mass=0.9)", "mass=0.9")):
        with pytest.raises(SpecError, match=says):
            chosen(method)


@pytest.mark.parametrize("below", ["auto", "100000"])
def test_what_renumbers_reads_everything_within_the_range_only(below):
    info = ModelInfo((0,), BreakEven(90_000, ((2, 50_000), (4, 100)), "constants"), positions=64)
    options = f"budget=4, sinks=2, window=4, dense_below={below}"
    readings = [
        Recipe.parse(f"quest({options}{more})").layers(info)[0].reading for more in ("", ", renumber=true")
    ]
    assert readings[0].dense_below.at(1) > 64
    assert readings[1].dense_below.at(1) == readings[1].dense_below.at(2) == 65
    assert readings[1].dense_below.at(4) <= 65
    assert "range" in readings[1].dense_below.source


def test_lengths_below_the_range_stay():
    pays = BreakEven(30, ((2, 20),), "constants")
    assert pays.at_most(65, "the range") is pays
