"""An answer depends on its own tokens alone: not on pieces, neighbours, prefixes or preemption."""

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.engines.vllm.requests import must_mirror
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
everything = pytest.mark.parametrize(("name", "mirrored"), MODES)


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


@everything
@settings(max_examples=4)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 130), st.integers(1, 24)), min_size=1, max_size=3),
    hit=st.integers(0, 9),
    seed=st.integers(0, 999),
)
def test_answers_are_those_of_plain_layer_caches(name, mirrored, sizes, hit, seed):
    recipe = RECIPES[name]
    texts = [Text(f"r{at}", prompt, more, seed=at) for at, (prompt, more) in enumerate(sizes)]
    engine = Engine(recipe, texts, mirrored=mirrored)
    engine.furthest = dict.fromkeys(engine.texts, 0)
    backs = [layer.looks_back for layer in recipe.layers(LAYERS)]
    play(engine, Random(seed), 0 if None in backs else hit)
    for text in texts:
        check(engine, text, alone(recipe, text)[0])
