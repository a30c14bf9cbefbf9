"""An answer depends on its own tokens alone: not on pieces, neighbours, prefixes or preemption."""

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.engines.vllm.requests import ServedRequests, must_mirror
from keyhole.methods import Recipe
from keyhole.methods.recipe import alone as recipe_of
from tests.engines.vllm.play import LAYERS, Engine, Text, alone
from tests.small import DROPPING, SELECTIVE, small

# Those that compute prompts sparsely depend on pieces, and CHESS is no question of attention.
NAMES = ["dense", "quantised", *SELECTIVE, *DROPPING]
RECIPES = {name: recipe_of(small(name)) for name in NAMES}
RECIPES |= {f"{name}-8": Recipe((small(name, 8),)) for name in SELECTIVE if name != "mpcache"}
RECIPES |= {
    f"{name}-every": recipe_of(replace(small(name, 24), every=3))
    for name in ("streamingllm", "h2o", "snapkv", "adakv", "windowkv")
}
RECIPES |= {
    text: Recipe.parse(text)
    for text in (
        "mpcache(keep=0.5, window=6, sinks=2, fine=3, coarse=6)",
        "pqcache(budget=8, window=6, sinks=2, place=host)",
        "oracle(budget=8, window=6, sinks=2, kv_dtype=int8)",
        "snapkv(budget=40, window=8) + quest(budget=8, window=6, sinks=2)",
        "h2o(budget=24, window=8, queries=12, every=2)",
    )
}
MODES = [
    (name, mirrored)
    for name, recipe in RECIPES.items()
    for mirrored in (False, True)
    if mirrored or not must_mirror(recipe, LAYERS)
]
QUICK = [
    ("dense", False),
    ("quest-8", False),
    ("delta-8", False),
    ("snapkv-every", True),
    ("mpcache(keep=0.5, window=6, sinks=2, fine=3, coarse=6)", True),
]
assert set(QUICK) <= set(MODES)


def check(engine, text, expected):
    answer = engine.answer(text.name)
    first = engine.first[text.name]
    torch.testing.assert_close(answer.out[:, first:], expected.out[:, first:], rtol=1e-4, atol=2e-5)
    assert answer.selected == expected.selected


def play(engine, random, hit):
    """Cut, interleave and preempt until all texts are complete."""
    texts, preempted = engine.texts.values(), 0
    for text in texts:
        engine.begin(text.name, hit)
    while any(engine.done[text.name] < text.length for text in texts):
        plan = {}
        for text in texts:
            done = engine.done[text.name]
            if done < text.length and random.random() < 0.7:
                ahead = max(text.prompt - done, 1)
                plan[text.name] = random.randint(1, max(ahead, reached(engine, text) - done))
        if plan:
            engine.step(plan)
            for name, end in engine.done.items():
                engine.furthest[name] = max(engine.furthest[name], end)
        if preempted < 3 and random.random() < 0.15:
            engine.preempt(random.choice(sorted(engine.texts)), hit)
            preempted += 1


def reached(engine, text):
    """How far a text has been: its tokens up to there may come again at once, the next is not yet known."""
    return max(engine.furthest[text.name], engine.done[text.name] + 1)


LIVES = {
    "sizes": st.lists(st.tuples(st.integers(1, 130), st.integers(1, 24)), min_size=1, max_size=3),
    "hit": st.integers(0, 9),
    "seed": st.integers(0, 999),
}


@pytest.mark.parametrize(("name", "mirrored"), QUICK)
@settings(max_examples=2)
@given(**LIVES)
def test_answers_are_those_of_plain_layer_caches(name, mirrored, sizes, hit, seed):
    live(name, mirrored, sizes, hit, seed)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mirrored"), MODES)
@settings(max_examples=6)
@given(**LIVES)
def test_all_methods(name, mirrored, sizes, hit, seed):
    live(name, mirrored, sizes, hit, seed)


def live(name, mirrored, sizes, hit, seed):
    recipe = RECIPES[name]
    texts = [Text(f"r{at}", prompt, more, seed=at) for at, (prompt, more) in enumerate(sizes)]
    engine = Engine(recipe, texts, mirrored=mirrored)
    engine.furthest = dict.fromkeys(engine.texts, 0)
    backs = [layer.looks_back for layer in recipe.layers(LAYERS)]
    play(engine, Random(seed), 0 if None in backs else hit)
    for text in texts:
        check(engine, text, alone(recipe, text)[0])


def served_once(engine):
    """Both texts: a prompt each, then steps to their ends."""
    engine.step({text.name: text.prompt for text in engine.texts.values()})
    while left := [name for name, text in engine.texts.items() if engine.done[name] < text.length]:
        engine.step(dict.fromkeys(left, 1))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("spoilt", [5, 62])
def test_a_request_that_fails_takes_no_other_with_it(mirrored, spoilt):
    """NaN in a prompt, or in a generated token: its outputs are NaN from there on, and the reason is told."""
    texts = [Text("good", 60, 8, seed=1), Text("bad", 60, 8, seed=2)]
    texts[1].key[2, spoilt] = torch.inf
    engine = Engine(RECIPES["oracle-8"], texts, mirrored=mirrored)
    served_once(engine)
    check(engine, texts[0], alone(RECIPES["oracle-8"], texts[0])[0])
    out = engine.answer("bad").out
    begun = 0 if spoilt < 60 else spoilt
    assert out[2, begun:].isnan().all()
    assert out[3, begun:].isnan().all()
    assert out[:, :begun].isfinite().all()
    assert out[:2, :60].isfinite().all()
    assert "layer 2" in engine.served.failed["bad"]
    assert list(engine.served.failed) == ["bad"]
    engine.leave("bad")
    engine.served.begin_step([], engine.gone)
    assert not engine.served.failed


@pytest.mark.parametrize(
    ("name", "mirrored"), [("quest-8", False), ("quest-8", True), ("snapkv-every", True)]
)
def test_usage_is_that_of_plain_layer_caches_and_nothing_is_left(name, mirrored):
    text, recipe = Text("r", 90, 12, seed=3), RECIPES[name]
    engine = Engine(recipe, [text], mirrored=mirrored)
    engine.step({"r": 90})
    for _ in range(7):
        engine.step({"r": 1})
    engine.preempt("r")
    engine.step({"r": 97})
    for _ in range(5):
        engine.step({"r": 1})
    _, layers = alone(recipe, text)
    told = engine.served.take_usage()["r"]
    assert told.steps == 12
    assert told.read == pytest.approx(sum(layer.usage.read for layer in layers) / LAYERS)
    assert told.bytes == pytest.approx(sum(layer.usage.bytes for layer in layers))
    assert told.share == pytest.approx(told.read / told.context)
    assert told.held.device > 0
    assert engine.served.usage("r").held == engine.served.footprint
    assert engine.served.take_usage() == {}
    engine.leave("r")
    engine.served.begin_step([], engine.gone)
    assert len(engine.served) == 0
    assert engine.served.take_usage() == {}
    assert not any(engine.served.footprint)


def test_rows_that_do_not_follow_are_refused():
    text = Text("r", 30, 4, seed=0)
    engine = Engine("dense", [text], mirrored=True)
    engine.step({"r": 10})
    engine.done["r"] = 12
    with pytest.raises(ValueError, match="has 10 tokens, and a step brings those from 12 on"):
        engine.step({"r": 3})
    late = Engine("dense", [text], mirrored=False)
    late.done["r"] = 30
    with pytest.raises(ValueError, match="behind its prompt of 30"):
        late.step({"r": 1})
    lost = Engine("dense", [text], mirrored=True)
    lost.begin("r", 0)
    lost.tables["r"], lost.done["r"] = [0, 7], 16
    with pytest.raises(ValueError, match="blocks that were given back"):
        lost.step({"r": 4})


def test_methods_with_a_storage_of_their_own_are_mirrored():
    for text in ("snapkv", "shadowkv(rank=8)", "quest(kv_dtype=int8)", "oracle(place=host)"):
        recipe = Recipe.parse(text)
        assert must_mirror(recipe, LAYERS)
        with pytest.raises(ValueError, match="serve it mirrored"):
            ServedRequests(recipe, LAYERS, mirrored=False)
    assert not must_mirror(Recipe.parse("sale + pqcache"), LAYERS)
