"""What the command line checks before it imports anything agrees with the methods themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhole import METHODS, SpecError
from keyhole.cli import early
from keyhole.methods import Recipe
from tests.docs import DOCS, script

VALUES = [
    "0",
    "1",
    "-1",
    "7",
    "0.5",
    "1e39",
    "true",
    "false",
    "auto",
    "None",
    "x",
    "(1, 2)",
    "'64MB'",
    "1" * 310,
]
CALLS = st.sampled_from(sorted(METHODS)).flatmap(
    lambda name: st.tuples(
        st.just(name), st.sampled_from([*METHODS[name].options(), "nosuch"]), st.sampled_from(VALUES)
    )
)


def test_the_table_is_what_the_code_says():
    held = (DOCS.parent / "src/keyhole/cli/methods.json").read_text(encoding="utf-8")
    made = script("option_table").table()
    assert held == made, "run: python docs/gen/option_table.py > src/keyhole/cli/methods.json"


@given(CALLS)
def test_nothing_is_refused_that_the_method_takes(call):
    name, option, value = call
    try:
        Recipe.parse(f"{name}({option}={value})")
    except SpecError:
        return
    early.check_method(f"{name}({option}={value})")


@pytest.mark.parametrize(
    "method", ["pqcach", "quest(page=0)", "quest(page=true)", "oracle(budget=1.5)", "sale(tau=nan)"]
)
def test_the_messages_begin_alike(method):
    with pytest.raises(SpecError) as really:
        Recipe.parse(method)
    with pytest.raises(SpecError) as before:
        early.check_method(method)
    assert str(before.value).split(";")[0] == str(really.value).split(";")[0]


def test_methods_of_other_packages_are_checked_by_themselves(monkeypatch):
    monkeypatch.setattr(early, "_plugins", lambda: ("other",))
    early.check_method("other(option=1) + pqcache")
    with pytest.raises(SpecError, match="unknown method 'othr'; did you mean 'other'"):
        early.check_method("othr")


@pytest.mark.parametrize("spec", ["snapkv(mass=0.9)", "delta(budget='mass=0.9')", "mpcache(floor=4)"])
def test_a_budget_of_mass_is_refused_with_what_to_give(spec):
    with pytest.raises(SpecError, match=r"attention mass; give tokens \(budget=256\) or a fraction"):
        early.check_method(spec)


@pytest.mark.parametrize("spec", ["quest(error=0.1)", "a2ats(budget='error=0.1')"])
def test_a_budget_of_error_is_refused_with_what_keeps_to_one(spec):
    for check in (early.check_method, Recipe.parse):
        with pytest.raises(SpecError, match=r"index that estimates each token.*oracle, pqcache"):
            check(spec)


@pytest.mark.parametrize("spec", ["pqcache(error=0.05)", "pqcache(error=0.05, floor=4, cap=0.5) + tail"])
def test_a_budget_of_error_is_taken(spec):
    early.check_method(spec)
    assert str(Recipe.parse(str(Recipe.parse(spec)))) == str(Recipe.parse(spec))


def test_a_renamed_option_is_shown_as_it_is_written():
    with pytest.raises(SpecError, match=r"write kv_dtype=int8$"):
        early.check_method("quest(keys=int8)")


def test_a_method_that_needs_an_option_is_refused_before_torch_is_imported():
    with pytest.raises(SpecError, match=r"nosa needs head=; .*keyhole train --selection nosa --out DIR"):
        early.check_served("nosa(budget=0.1)")
    early.check_served("nosa(head='some/folder')")
    early.check_served("infllm_v2")
