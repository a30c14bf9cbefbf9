"""What a request is admitted with is at least what it holds."""

import pytest

from keyhole.engines.transformers import KeyholeCache, attach
from keyhole.generation.decoding import build_index, prefill
from keyhole.methods import Recipe
from keyhole.serving.memory import Needs, default_memory
from tests.serving.prompts import ids_of, text_of


@pytest.mark.parametrize(
    "method",
    ["dense", "pqcache(dense_below=0)", "quest", "quantised(bits=4)", "snapkv", "quest(place=disk)"],
)
def test_a_request_holds_no_more_than_was_thought(loaded, method):
    import torch

    recipe, model = Recipe.parse(method), loaded.model
    ids = torch.tensor([ids_of(loaded, text_of("a", 24))])
    with attach(model):
        cache = KeyholeCache(model, recipe)
        prefill(model, ids, cache)
        build_index(model, cache)
    held = cache.footprint.device + cache.footprint.host
    needed = Needs(model).of(recipe, ids.shape[1])
    assert held <= needed
    if method in ("dense", "quantised(bits=4)"):
        assert needed <= 4 * held


def test_needs_grow_with_the_text_and_shrink_with_the_precision(loaded):
    needs, dense = Needs(loaded.model), Recipe.parse("dense")
    assert needs.of(dense, 2000) == 2 * needs.of(dense, 1000) > 0
    assert needs.of(Recipe.parse("quantised(bits=4)"), 1000) < needs.of(dense, 1000) / 2


def test_a_method_that_drops_tokens_holds_a_piece_and_what_it_keeps(loaded):
    needs, kept = Needs(loaded.model), Recipe.parse("snapkv(budget=1000)")
    whole = Recipe.parse("snapkv(budget=1000, prompt=whole)")
    assert needs.of(kept, 100_000) == needs.of(kept, 50_000) < needs.of(whole, 50_000)


def test_there_is_memory(loaded):
    assert default_memory(loaded.model.device) > 0
