import pytest

from keyhole.core.errors import SpecError
from keyhole.core.method_text import split_specs
from keyhole.evaluation.candidates import DENSE, candidates
from keyhole.methods import METHODS, PQCache


def names(methods, budgets):
    return [(each.method, each.budget) for each in candidates(methods, budgets)]


def test_dense_comes_first_and_once():
    assert names(["oracle", "dense"], [0.1]) == [("dense", "full"), ("oracle", "0.1")]
    assert candidates(["dense", "oracle"], [0.1])[0] == DENSE


def test_every_method_at_every_budget():
    found = names(["oracle", "pqcache(bits=6)"], ["0.1", 64, "mass=0.9"])
    assert found[1:4] == [("oracle", "0.1"), ("oracle", "64"), ("oracle", "mass=0.9")]
    assert found[4:] == [
        ("pqcache(bits=6)", "0.1"),
        ("pqcache(bits=6)", "64"),
        ("pqcache(bits=6)", "mass=0.9"),
    ]


def test_a_named_budget_is_the_only_one():
    assert names(["pqcache(budget=64)"], [0.1, 0.2])[1:] == [("pqcache", "64")]
    assert names(["pqcache(mass=0.9)"], [0.1, 0.2])[1:] == [("pqcache", "mass=0.9")]


def test_stages_with_budgets_of_their_own_are_taken_as_written():
    found = candidates(["snapkv(budget=0.5) + oracle(budget=0.1)"], [0.05, 0.2])[1:]
    assert [each[:2] for each in found] == [("snapkv + oracle", "0.5 + 0.1")]
    assert [stage.budget.fraction for stage in found[0].recipe.stages] == [0.5, 0.1]
    assert found[0].recipe.retrieval.dense_below == 0


def test_what_drops_tokens_is_left_out_at_budgets_of_mass():
    assert names(["snapkv"], [0.1, "mass=0.9"])[1:] == [("snapkv", "0.1")]


def test_so_is_what_cannot_promise_a_mass():
    assert names(["delta", "mpcache", "quest"], ["mass=0.9"])[1:] == [("quest", "mass=0.9")]


def test_so_is_what_renumbers_and_it_is_said():
    said = []
    chosen = candidates(
        ["pqcache(renumber=true)", "snapkv", "quest"],
        [0.1, "mass=0.9"],
        left_out=lambda *what: said.append(what),
    )
    assert [(each.method, each.budget) for each in chosen[1:]] == [
        ("pqcache(renumber=True)", "0.1"),
        ("snapkv", "0.1"),
        ("quest", "0.1"),
        ("quest", "mass=0.9"),
    ]
    assert [each[:2] for each in said] == [("pqcache(renumber=True)", "mass=0.9"), ("snapkv", "mass=0.9")]
    assert "needs a fixed number of tokens" in said[0][2]
    assert "drops tokens" in said[1][2]


def test_a_mass_that_is_named_and_cannot_be_promised_is_refused():
    with pytest.raises(SpecError, match="needs a fixed number of tokens"):
        candidates(["pqcache(renumber=true, mass=0.9)"], [0.1])


def test_all_methods():
    found = {each.recipe.stages[0].name for each in candidates(["all"], [0.1, "mass=0.9"])}
    assert found == {name for name, kind in METHODS.items() if not kind.required} == set(METHODS) - {"nosa"}
    assert ("criticalkv + snapkv", "0.1") in names(["all"], [0.1])
    assert names(["all", "quest"], [0.1]) == names(["all"], [0.1])


def test_prompts_are_computed_as_the_method_does_at_any_length():
    chosen = candidates(["sale", "sale(dense_below=2000)"], [])[1:]
    assert [each.recipe.stages[0].dense_below for each in chosen] == [0, 2000]


def test_a_method_object_takes_the_budgets():
    assert names([PQCache(budget=64)], [0.1])[1:] == [("pqcache", "0.1")]


def test_the_recipe_has_the_budget():
    stage = candidates(["pqcache"], [0.25])[1].recipe.stages[0]
    assert stage.budget.fraction == 0.25


def test_it_selects_at_any_length_unless_told_otherwise():
    found = candidates(["pqcache", "pqcache(dense_below=77)", "oracle"], [0.25])[1:]
    assert [each.recipe.retrieval.dense_below for each in found] == [0, 77, 0]
    assert [each.method for each in found] == ["pqcache", "pqcache(dense_below=77)", "oracle"]


def test_mass_is_known():
    assert [each.mass for each in candidates(["oracle"], [0.1, "mass=0.9"])] == [None, None, 0.9]


@pytest.mark.parametrize(
    ("methods", "budgets"),
    [(["oracle"], ["1.5"]), (["oracel"], [0.1]), (["pqcache(bit=3)"], [0.1]), ([], [0.1]), (["oracle"], [])],
)
def test_refused(methods, budgets):
    with pytest.raises(SpecError):
        candidates(methods, budgets)


def test_commas_in_parentheses_do_not_separate():
    assert split_specs("dense, pqcache(bits=6, subspaces=2),oracle,") == [
        "dense",
        "pqcache(bits=6, subspaces=2)",
        "oracle",
    ]


def test_error_is_known_and_left_out_where_it_cannot_be_kept():
    found = candidates(["oracle", "quest"], ["error=0.05"])
    assert [each[:2] for each in found[1:]] == [("oracle", "error=0.05")]
    assert [each.error for each in found] == [None, 0.05]
    assert names(["pqcache(error=0.1)"], [0.2])[1:] == [("pqcache", "error=0.1")]
