"""Options are declared once: what is refused, how messages say so, and the schema made from them."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.core.numbers import MOST_TOKENS, shown
from keyhole.methods import METHODS, PQCache, Quest, Recipe, SnapKV
from keyhole.methods.option_kinds import Bytes, Choice, Integer, Number

HUGE = {
    "310 digits": 10**310,
    "minus 310 digits": -(10**310),
    "5001 digits": 10**5000,
    "slots beyond 31 bits": 2**31,
    "beyond 63 bits": 2**64,
}
WRONG = {
    repr(value): value
    for value in (math.nan, math.inf, -math.inf, -1, 1.5, "x", "", b"x", None, True, [], {}, (1,))
}
NUMBERS = [
    (kind, name)
    for kind in METHODS.values()
    for name, (option, _) in kind.options().items()
    if isinstance(option, Integer | Number)
]


def names(cases):
    return [f"{kind.name}.{name}" for kind, name in cases]


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=names(NUMBERS))
def test_numbers_out_of_range_are_refused_with_the_range(kind, name):
    option = kind.options()[name][0]
    for value in [*HUGE.values(), math.nan, math.inf, -math.inf, option.ge - 1]:
        if isinstance(value, int) and option.ge <= value <= (option.le or 2**64):
            continue
        with pytest.raises(SpecError) as refused:
            kind(**{name: value})
        said = str(refused.value)
        assert said.startswith(f"{kind.name}: {name}=")
        assert shown(value) in said
        assert option.allowed in said
        assert len(said) < 300


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", [*HUGE, *WRONG])
def test_any_value_of_any_option_is_taken_or_refused_clearly(name, case):
    value = (HUGE | WRONG)[case]
    for option in METHODS[name].options():
        said = refusal(METHODS[name], option, value)
        assert not said or option in said or "budget" in said
        assert len(said) < 400


def refusal(kind, option, value):
    """What is said where an option is refused."""
    try:
        kind(**{option: value})
    except SpecError as error:
        return str(error)
    return ""


def test_budgets_out_of_range():
    for value in (*HUGE.values(), math.nan, math.inf, -0.1, 0, 1.1, 10**400):
        refuses_as_a_budget(value)


def refuses_as_a_budget(value):
    for build in (lambda: Budget.parse(value), lambda: Budget(fraction=value), lambda: Budget(mass=value)):
        with pytest.raises(SpecError, match=r"budget|mass"):
            build()


@pytest.mark.parametrize("text", ["9" * 400, "9" * 900, "1e400", "-1e400", "nan", "inf", "9" * 400 + "%"])
def test_budgets_as_text_out_of_range(text):
    with pytest.raises(SpecError, match="budget"):
        Recipe.parse(f"quest(budget='{text}')")


@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "GiB", "9" * 400 + ".5MB", 2**63, 10**310])
def test_bytes_out_of_range(text):
    with pytest.raises(SpecError, match=r"block_cache=.*at most 4611686018427387904 bytes"):
        Quest(place="disk", block_cache=text)


def test_the_most_tokens_fit_in_sums_of_slots():
    method = Quest(sinks=MOST_TOKENS, window=MOST_TOKENS, budget=MOST_TOKENS, page=MOST_TOKENS)
    assert method.sinks + method.window <= 2**31
    layer = Recipe((method,)).layers(1)[0]
    assert layer.reading.budget.tokens == 2**30


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("quest(keys=int8)", "quest: keys= is now kv_dtype=; write kv_dtype=int8"),
        ("quest(keys=full)", "write kv_dtype=auto"),
        ("quest(kv_dtype=full)", "quest: kv_dtype=full is now kv_dtype=auto"),
        ("oracle(place=disk, cache='64MB')", "cache= is now block_cache=; write block_cache='64MB'"),
        ("shadowkv(place=disk, eviction=lru)", "eviction= is now block_eviction=; write block_eviction=lru"),
        ("quantised(place=disk, cache=7)", "write block_cache=7"),
    ],
)
def test_former_names_are_refused_with_the_new_ones(spec, said):
    with pytest.raises(SpecError, match=re.escape(said)):
        Recipe.parse(spec)


def test_former_names_are_refused_in_python_too():
    with pytest.raises(SpecError, match="write kv_dtype=int8"):
        PQCache(keys="int8")
    with pytest.raises(TypeError, match="keys"):
        SnapKV(keys="int8")


@pytest.mark.parametrize("name", METHODS)
def test_every_option_has_a_range_and_a_meaning(name):
    for option, default in METHODS[name].options().values():
        assert option.help
        assert not option.help[0].islower()
        assert option.allowed
        if isinstance(option, Integer):
            assert option.le <= 2**63
        assert default is None or option.read(name, "default", default) == default


@pytest.mark.parametrize("name", METHODS)
def test_a_schema_takes_the_defaults(name):
    schema = METHODS[name].schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["title"] == name
    for option, (declared, default) in METHODS[name].options().items():
        described = schema["properties"][option]
        assert described["description"] == declared.help
        plain = (default.fraction or default.tokens) if isinstance(default, Budget) else default
        assert described["default"] == plain
        assert described.get("x-unit", "") == declared.unit


def test_a_schema_has_types_ranges_and_words():
    described = Quest.schema()["properties"]
    assert described["window"] == {
        "description": "Newest tokens, always read, including the current one.",
        "type": "integer",
        "minimum": 1,
        "maximum": MOST_TOKENS,
        "default": 64,
        "x-unit": "tokens",
    }
    assert described["kv_dtype"]["enum"] == ["auto", "int8", "int4", "int3", "int2"]
    assert {"enum": ["auto"]} in described["dense_below"]["anyOf"]
    assert {"type": "null"} in PQCache.schema()["properties"]["subspaces"]["anyOf"]
    assert {"mass", "floor", "cap"} < set(described)
    assert "mass" not in SnapKV.schema()["properties"]


@given(st.one_of(st.integers(), st.floats(), st.text(), st.booleans(), st.none()))
def test_options_take_what_their_schema_says(value):
    def taken(option):
        try:
            option.read("m", "o", value)
        except SpecError:
            return False
        return True

    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or (isinstance(value, float) and math.isfinite(value))
    assert taken(Integer(help="", ge=2, le=9)) == (whole and 2 <= value <= 9)
    assert taken(Number(help="", ge=0, lt=1)) == (number and 0 <= value < 1)
    assert taken(Choice(help="", values=(1, "a"))) == ((whole and value == 1) or value == "a")
    if whole:
        assert taken(Bytes(help="")) == (0 <= value <= 2**62)
