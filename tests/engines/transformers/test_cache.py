"""Caches: made, taken over, refused, copied, cropped."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, QuantizedCache

import keyhole
from keyhole.engines.transformers.cache import KeyholeLayer
from keyhole.engines.transformers.compat import CACHE, returned_cache
from tests.engines.transformers.running import answer, assert_same, attention_of, given
from tests.small import SELECTIVE, small
from tests.tiny import fresh_model, prompt, tiny_model

EVERYTHING = "oracle(mass=1.0, floor=1000000, sinks=2, window=6)"
PART = "oracle(budget=12, sinks=2, window=6)"


@pytest.fixture
def model():
    model = tiny_model("gemma3")
    yield model
    keyhole.detach(model)
    assert attention_of(model) == ["sdpa"]


@pytest.mark.parametrize("method", ["dense", EVERYTHING])
def test_a_cache_made_and_passed(model, method):
    ids = prompt(90)
    wanted = answer(model, ids)
    cache = keyhole.make_cache(model, method)
    assert attention_of(model) == ["keyhole"]
    assert_same(answer(model, ids, **given(cache)), wanted)
    assert keyhole.usage(cache).steps == 5
    assert keyhole.footprint(cache).device > 0


def test_other_caches_of_a_switched_model_are_transformers_own(model):
    ids = prompt(90)
    wanted = answer(model, ids)
    keyhole.make_cache(model, PART)
    assert_same(answer(model, ids), wanted)
    assert_same(answer(model, ids, cache_implementation="static", disable_compile=True), wanted)


def test_detach_waits_for_the_end_of_a_block(model):
    with keyhole.attach(model, EVERYTHING):
        keyhole.make_cache(model, PART)
        keyhole.detach(model)
        assert attention_of(model) == ["keyhole"]
    assert attention_of(model) == ["sdpa"]


def test_a_kept_switch_outlives_a_block(model):
    cache = keyhole.make_cache(model, EVERYTHING)
    with keyhole.attach(model, PART):
        pass
    assert attention_of(model) == ["keyhole"]
    answer(model, prompt(60), **given(cache))


def test_detach_is_harmless_where_there_is_nothing_to_do():
    model = fresh_model("llama")
    keyhole.detach(model)
    keyhole.detach(model)
    assert attention_of(model) == ["sdpa"]


def test_a_cache_keeps_its_method_in_a_block_of_another(model):
    cache = keyhole.make_cache(model, EVERYTHING)
    with keyhole.attach(model, PART) as attached:
        answer(model, prompt(90), **given(cache))
    assert attached.usage == keyhole.usage(cache)
    assert attached.usage.read == attached.usage.tokens


@pytest.mark.parametrize("configured", [True, False], ids=["configured", "bare"])
@pytest.mark.parametrize("family", ["gemma3", "llama", "qwen3_next"])
def test_an_empty_cache_is_taken_over(family, configured):
    model, ids = tiny_model(family), prompt(90)
    wanted = answer(model, ids)
    cache = DynamicCache(config=model.config) if configured else DynamicCache()
    with keyhole.attach(model, EVERYTHING) as attached:
        assert_same(answer(model, ids, **given(cache)), wanted)
        assert attached.cache is cache
    assert len(attached.layers) == sum(isinstance(layer, KeyholeLayer) for layer in cache.layers) > 0


@torch.no_grad()
@pytest.mark.parametrize("configured", [True, False], ids=["configured", "bare"])
@pytest.mark.parametrize("family", ["gemma3", "llama", "gpt_oss"])
def test_a_cache_that_holds_tokens_is_taken_over(family, configured):
    model, ids = tiny_model(family), prompt(90)
    wanted = answer(model, ids)
    cache = DynamicCache(config=model.config) if configured else DynamicCache()
    model(ids[:, :70], **given(cache))
    with keyhole.attach(model, EVERYTHING) as attached:
        assert_same(answer(model, ids, **given(cache)), wanted)
    assert [layer.length for layer in attached.layers] == [95] * len(attached.layers)
    kinds = [type(layer) for layer in DynamicCache(config=model.config).layers]
    served = [isinstance(layer, KeyholeLayer) for layer in cache.layers]
    assert served == [kind is DynamicLayer for kind in kinds]


@torch.no_grad()
def test_a_cache_that_cannot_be_taken_over_is_left_as_it_was(model):
    cache = DynamicCache(config=model.config)
    model(prompt(70), **given(cache))
    cache.layers[-1].keys[0, 0, 3] = torch.nan
    layers = list(cache.layers)
    with keyhole.attach(model, PART), pytest.raises(keyhole.NonFiniteError):
        model(prompt(1), **given(cache))
    assert cache.layers == layers


def offloaded(model):
    cache = DynamicCache(config=model.config)
    cache.offloading = True
    return cache


def quantised(model):
    cache = QuantizedCache.__new__(QuantizedCache)
    Cache.__init__(cache, layers=DynamicCache(config=model.config).layers)
    return cache


REFUSED = {
    "StaticCache": lambda model: StaticCache(config=model.config, max_cache_len=100),
    "QuantizedCache": quantised,
    "DynamicCache with offloading": offloaded,
    "Cache": lambda _model: Cache(layer_class_to_replicate=DynamicLayer),
    "tuple": lambda _model: ((torch.zeros(1, 2, 3, 16),) * 2,) * 2,
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_caches_it_cannot_take_over(name):
    model = tiny_model("llama")
    cache = REFUSED[name](model)
    message = f"cannot take over a {name}; leave out {CACHE} and .* or pass keyhole.KeyholeCache"
    with keyhole.attach(model, PART), pytest.raises(keyhole.UnsupportedCacheError, match=message):
        model(prompt(20), **given(cache))
    assert attention_of(model) == ["sdpa"]


def test_refuses_a_static_cache_that_generate_makes_and_names_the_way_out():
    model = fresh_model("llama")
    model.generation_config.cache_implementation = "static"
    with keyhole.attach(model, PART) as attached:
        with pytest.raises(
            keyhole.UnsupportedCacheError, match=r"StaticCache; .* give cache_implementation=None"
        ):
            model.generate(prompt(20), max_new_tokens=2)
        model.generate(prompt(20), max_new_tokens=2, cache_implementation=None)
    assert attached.layers[0].length == 21


def test_a_layer_refuses_to_be_offloaded(model):
    layer = keyhole.make_cache(model, PART).layers[-1]
    for move in (layer.offload, layer.prefetch):
        with pytest.raises(keyhole.UnsupportedCacheError, match="without offloading"):
            move()


def test_crop_takes_what_to_remove(model):
    cache = keyhole.make_cache(model, PART)
    layer = cache.layers[-1]
    layer.update(torch.ones(1, 2, 9, 16), torch.ones(1, 2, 9, 16))
    with pytest.raises(ValueError, match="the negative of the tokens to remove, not 4"):
        layer.crop(4)
    layer.crop(0)
    assert layer.get_seq_length() == 9
    layer.crop(-4)
    assert layer.get_seq_length() == 5
    layer.crop(-40)
    assert layer.get_seq_length() == 0


def test_an_empty_cache_can_be_reordered(model):
    cache = keyhole.make_cache(model, PART)
    for layer in keyhole_layers(cache):
        layer.batch_repeat_interleave(3)
        layer.batch_select_indices(torch.tensor([0]))
        layer.reorder_cache(torch.tensor([0, 0]))
        assert layer.get_seq_length() == 0
        assert layer.get_max_length() == -1


def keyhole_layers(cache):
    return [layer for layer in cache.layers if isinstance(layer, KeyholeLayer)]


@pytest.mark.parametrize(
    "method",
    [small(name, 20) for name in SELECTIVE] + [replace(small("quest", 20), place="disk")],
    ids=str,
)
def test_a_copy_of_a_prompt_serves_many_questions(method):
    """The usual way to reuse a prompt: its cache is copied, and each copy goes its own way."""
    model, ids = tiny_model("llama"), prompt(100)
    questions = [torch.cat([ids, prompt(9, seed=seed)], dim=1) for seed in (1, 2)]
    with keyhole.attach(model, method) as attached:
        held = model.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        returned_cache(held).crop(-3)
        before = [layer.length for layer in attached.layers]
        found = [answer(model, ask, **given(deepcopy(returned_cache(held)))) for ask in questions]
        again = [answer(model, ask, **given(deepcopy(returned_cache(held)))) for ask in questions]
    assert [layer.length for layer in keyhole.served_layers(returned_cache(held))] == before == [100, 100]
    for one, other in zip(found, again, strict=True):
        assert_same(one, other)


def test_sliding_layers_stay_transformers_own(model):
    cache = keyhole.make_cache(model, PART)
    assert [type(layer) for layer in cache.layers] == [DynamicSlidingWindowLayer, KeyholeLayer]
    assert cache.is_sliding == [True, False]
    assert not cache.is_compileable
