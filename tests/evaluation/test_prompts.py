"""A prompt computed once serves every method as a prompt of its own would."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import keyhole
from keyhole.evaluation.prompts import Prompt, start
from keyhole.generation.decoding import decode
from keyhole.methods import Method, Recipe
from keyhole.prefill import DensePrefill
from tests.small import EVICTING, small
from tests.tiny import prompt, tiny_model

METHODS = {
    "dense": Recipe.parse("dense"),
    "oracle": Recipe.parse(small("oracle", 6)),
    "pqcache": Recipe.parse(small("pqcache", 6)),
    "pqcache-mass": Recipe.parse(small("pqcache", "mass=0.7")),
}


def tokens_from(model, last, begun):
    return [token.id for token in decode(model, last, begun.cache, limit=12)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_next", "falcon_h1"])
def test_a_copy_answers_as_a_fresh_run(family, name):
    model, tokens = tiny_model(family), prompt(120)
    shared = Prompt(model, tokens)
    # What other candidates do between must not show.
    tokens_from(model, shared.last, shared.start(METHODS["oracle"]))
    copied = shared.start(METHODS[name])
    fresh = start(model, METHODS[name], tokens)
    assert tokens_from(model, shared.last, copied) == tokens_from(model, shared.last, fresh)
    assert keyhole.usage(copied.cache) == keyhole.usage(fresh.cache)
    assert keyhole.footprint(copied.cache) == keyhole.footprint(fresh.cache)
    keyhole.detach(model)


@pytest.mark.parametrize("name", EVICTING)
@pytest.mark.parametrize("family", ["llama", "qwen3_next", "falcon_h1"])
def test_what_drops_tokens_sees_the_whole_prompt(family, name):
    """Also its last token, which is the first decode step then."""
    model, tokens, recipe = tiny_model(family), prompt(120), Recipe.parse(small(name, 20))
    shared = Prompt(model, tokens)
    tokens_from(model, shared.last, shared.start(METHODS["oracle"]))
    copied = shared.start(recipe)
    whole = keyhole.make_cache(model, recipe)
    with torch.no_grad():
        model(tokens, past_key_values=whole)
    for mine, fresh in zip(*map(keyhole.served_layers, (copied.cache, whole)), strict=True):
        fresh.prepare()
        fresh.crop(119)
        assert torch.equal(mine.kept.positions, fresh.kept.positions)
        torch.testing.assert_close(mine.storage.keys(), fresh.storage.keys())
    assert len(tokens_from(model, shared.last, copied)) == 12
    keyhole.detach(model)


@dataclass(frozen=True)
class OwnPrefill(Method):
    """Dense prefill, counted."""

    name: ClassVar[str] = "own"
    calls: ClassVar[list[int]] = []

    def prefill(self, info):
        calls = self.calls

        class Counted(DensePrefill):
            def attend(self, query, *args, **options):
                calls.append(query.shape[2])
                return super().attend(query, *args, **options)

        return [Counted() for _ in info.layers]


def test_a_method_with_its_own_prefill_gets_it():
    model, tokens = tiny_model("llama"), prompt(40)
    shared = Prompt(model, tokens)
    own = Recipe((OwnPrefill(),))
    begun = shared.start(own)
    assert OwnPrefill.calls == [39, 39]
    dense = shared.start(METHODS["dense"])
    assert tokens_from(model, shared.last, begun) == tokens_from(model, shared.last, dense)
    keyhole.detach(model)


def test_the_index_is_built_within_the_prefill_time():
    model = tiny_model("llama")
    begun = Prompt(model, prompt(120)).start(METHODS["pqcache"])
    assert begun.seconds > 0
    assert all(layer.indexed > 0 for layer in keyhole.served_layers(begun.cache))
    keyhole.detach(model)


def test_too_short():
    with pytest.raises(ValueError, match="at least 2"):
        Prompt(tiny_model("llama"), torch.ones(1, 1, dtype=torch.long))


@pytest.mark.filterwarnings("ignore:no layer")
def test_no_layer_to_serve():
    with pytest.raises(keyhole.UnsupportedModelError, match="no layer of full attention"):
        Prompt(tiny_model("mistral_sliding"), prompt(40))
    keyhole.detach(tiny_model("mistral_sliding"))
