import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.methods import METHODS, Dense, Oracle, PQCache, Recipe
from tests.small import BESIDE_OTHERS

shares = st.floats(min_value=0, max_value=1, exclude_min=True, allow_nan=False)
budgets = st.one_of(
    st.builds(Budget, tokens=st.integers(1, 10**6)),
    st.builds(Budget, fraction=shares),
    st.builds(Budget, mass=shares, floor=st.integers(0, 10**4), cap=shares),
    st.builds(Budget, error=shares, floor=st.integers(0, 10**4), cap=shares),
)
methods = st.one_of(
    st.builds(Dense),
    st.builds(Oracle, budget=budgets, sinks=st.integers(0, 99), window=st.integers(1, 99)),
    st.builds(
        PQCache, budget=budgets, subspaces=st.integers(1, 99), bits=st.integers(1, 8), rotate=st.booleans()
    ),
)


@given(methods)
def test_a_method_prints_as_it_is_written(method):
    assert Recipe.parse(str(method)) == Recipe((method,))


@given(methods)
def test_a_pipeline_prints_as_it_is_written(method):
    recipe = Recipe((Dense(), method))
    assert Recipe.parse(str(recipe)) == recipe


@pytest.mark.parametrize("name", [name for name in METHODS if name not in BESIDE_OTHERS])
def test_a_name_alone_means_the_defaults(name):
    assert Recipe.parse(name).stages == (METHODS[name](),)
    assert str(Recipe.parse(f" {name}()\n")) == name


@pytest.mark.parametrize(
    ("spec", "method"),
    [
        ("pqcache(budget=0.1)", PQCache(budget=0.1)),
        ("pqcache(budget=1.0)", PQCache(budget=Budget(fraction=1.0))),
        ("pqcache(budget=1)", PQCache(budget=Budget(tokens=1))),
        ("pqcache(budget='10%')", PQCache(budget=0.1)),
        ("pqcache(mass=0.95)", PQCache(budget=Budget(mass=0.95))),
        ("pqcache(budget='mass=0.95')", PQCache(budget=Budget(mass=0.95))),
        ("pqcache(mass=.9, floor=4, cap=.5)", PQCache(budget=Budget(mass=0.9, floor=4, cap=0.5))),
        ("pqcache(error=0.05)", PQCache(budget=Budget(error=0.05))),
        ("pqcache(budget='error=0.05')", PQCache(budget=Budget(error=0.05))),
        ("pqcache(error=.1, floor=4, cap=.5)", PQCache(budget=Budget(error=0.1, floor=4, cap=0.5))),
        ("pqcache(rotate=true, bits=4)", PQCache(rotate=True, bits=4)),
        ("pqcache(rotate=False)", PQCache(rotate=False)),
        ("( pqcache ( \n subspaces = 2 , ) )", PQCache(subspaces=2)),
    ],
)
def test_reads_options(spec, method):
    assert Recipe.parse(spec).stages == (method,)


HOSTILE = [
    *[
        "",
        " ",
        "+",
        "pqcache +",
        "+ pqcache",
        "pqcache, oracle",
        "pqcache oracle",
        "pqcache - oracle",
        "-pqcache",
    ],
    *["1", "None", "...", "'pqcache'", "[pqcache]", "pqcache()()", "pqcache[0]", "a.b", "lambda: pqcache"],
    *["pqcache(", "pqcache)", "pqcache(0.1)", "pqcache(*x)", "pqcache(**{'bits': 4})", "pqcache(budget 0.1)"],
    *[
        "pqcache(__import__('os'))",
        "pqcache(budget=__import__('os').system('true'))",
        "pqcache(bits=(1).bit_length())",
    ],
    *["pqcache(oracle())", "pqcache(budget=oracle())", "pqcache(budget=a.b)", "pqcache(bits=2+2)"],
    *[
        "pqcache(bits=[4])",
        "pqcache(bits={})",
        "pqcache(budget={[]: 1})",
        "pqcache(budget=1j)",
        "pqcache(bits=...)",
    ],
    *["pqcache(bits=4, bits=4)", "pqcache(budget=1, budget=2)", "pqcache(mass=0.9, budget=0.1)"],
    *["pqcache(error=0.1, budget=0.1)", "pqcache(error=0.1, mass=0.9)", "pqcache(error=0)"],
    *["pqcache(error=2)", "pqcache(error=true)", "pqcache(error=0.1, cap=0)", "dense(error=0.1)"],
    *["quest(error=0.1)", "snapkv(error=0.1)", "mpcache(error=0.1)", "a2ats(budget='error=0.1')"],
    *["pqcache(error=0.1, renumber=true)", "pqcache(error=0.1, sparse_prefill=true)"],
    *["tokenselect(error=0.1, reuse=0.9)", "tokenselect(error=0.1, distance=512)", "quest(error=0.1) + tail"],
    *["pqcache(floor=4)", "pqcache(cap=0.5)", "pqcache(budget=0.1, cap=0.5)", "pqcache(mass=0.9, floor=-1)"],
    *[
        "pqcache(budget=-1)",
        "pqcache(budget=0)",
        "pqcache(budget=0.0)",
        "pqcache(budget=1.5)",
        "pqcache(budget=-0.1)",
    ],
    *[
        "pqcache(budget=True)",
        "pqcache(budget=false)",
        "pqcache(budget=None)",
        "pqcache(budget=b'1')",
        "pqcache(budget=x)",
    ],
    *["pqcache(mass=2)", "pqcache(mass=0)", "pqcache(mass=-1)", "pqcache(mass=true)", "pqcache(mass=high)"],
    *[
        "pqcache(mass=0.9, cap='x')",
        "pqcache(mass=0.9, floor=0.5)",
        "pqcache(mass=None)",
        "pqcache(mass=1e400)",
    ],
    *["pqcache(bits=0)", "pqcache(bits=9)", "pqcache(bits=4.0)", "pqcache(bits=true)", "pqcache(bits='4')"],
    *[
        "pqcache(subspaces=0)",
        "pqcache(subspaces=-1)",
        "pqcache(window=0)",
        "pqcache(sinks=-1)",
        "pqcache(sinks=1e400)",
    ],
    *[
        "pqcache(iterations=0)",
        "pqcache(iterations=301)",
        "pqcache(bits=8, sample=255)",
        "pqcache(rotate=1)",
        "pqcache(rotate=yes)",
    ],
    *["pqcache(name=1)", "pqcache(paper='x')", "pqcache(self=1)", "pqcache(__class__=1)", "pqcache(Bits=4)"],
    *[
        "dense(budget=0.1)",
        "dense(mass=0.9)",
        "oracle(bits=4)",
        "pqcahce",
        "PQCache",
        "пqcache",
        "＿",
        "pqcache é",
    ],
    *["pqcache + oracle", "oracle + pqcache", "pqcache + pqcache", "dense + pqcache + oracle"],
    *[
        "pqcache\x00",
        "\ud800",
        "pqcache(budget='\ud800')",
        "\u202epqcache",
        "🗝",
        "pqcache;import os",
        "pqcache\nimport os",
    ],
    *["(" * 5000, "-" * 20000 + "1", "+".join(["pqcache"] * 5000), "pqcache(bits=" + "9" * 5000 + ")"],
    *["pqcache(budget='" + "9" * 5000 + "')", "pqcache(bits=" + "-" * 5000 + "1)", "pqcache" * 5000],
    "pqcache(budget=" + "[" * 150 + "]" * 150 + ")",
]


@pytest.mark.parametrize("spec", HOSTILE, ids=lambda spec: ascii(spec)[:60])
def test_refuses_with_a_reason(spec):
    with pytest.raises(SpecError) as refusal:
        Recipe.parse(spec)
    message = str(refusal.value)
    assert any(
        hint in message
        for hint in ("give", "write it like", "keep one", "did you mean", "there are:", "neither")
    )
    assert len(message) < 6000


@pytest.mark.parametrize("spec", [None, 42, 0.1, b"pqcache", ["pqcache"], PQCache], ids=repr)
def test_refuses_what_is_no_text(spec):
    with pytest.raises(TypeError, match="is not a method"):
        Recipe.parse(spec)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(SpecError):
        Recipe.parse(text)


@given(st.text(alphabet="pqcahe()=,+.01 mastrue-*'[]", max_size=40))
def test_any_text_like_a_specification_is_read_or_refused(text):
    for spec in (text, f"pqcache({text})", f"pqcache(budget={text})"):
        with contextlib.suppress(SpecError):
            Recipe.parse(spec)


def test_names_the_nearest_method_and_option():
    with pytest.raises(SpecError, match="did you mean 'pqcache'"):
        Recipe.parse("pqcahce")
    with pytest.raises(SpecError, match="did you mean 'subspaces'"):
        Recipe.parse("pqcache(subspace=4)")
    with pytest.raises(SpecError, match="there are: dense, oracle, pqcache"):
        Recipe.parse("xyzzy")


def test_names_the_stages_that_conflict():
    with pytest.raises(SpecError, match="pqcache and oracle both answer the question 'select'"):
        Recipe.parse("pqcache + oracle")


def test_long_texts_are_not_repeated_in_full():
    with pytest.raises(SpecError) as refusal:
        Recipe.parse("(" * 100_000)
    assert len(str(refusal.value)) < 300
