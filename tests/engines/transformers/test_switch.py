"""Copies of a model, or of its configuration, that are made inside a block are ordinary ones."""

import copy
import gc
import pickle
import weakref

import pytest

import keyhole
from tests.engines.transformers.running import answer, assert_same, attention_of
from tests.tiny import fresh_model, prompt

PART = "oracle(budget=12, sinks=2, window=6)"


@pytest.fixture
def model():
    return fresh_model("llama")


def saved(model, path):
    model.save_pretrained(path)
    return type(model).from_pretrained(path).eval()


COPIES = {
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "save_pretrained": saved,
    "configuration": lambda model, _: type(model)(copy.deepcopy(model.config)).eval(),
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_copy_made_inside_a_block(model, kind, implementation, tmp_path):
    if kind != "save_pretrained":
        model.set_attn_implementation(implementation)
    wanted = answer(model, prompt(60))
    with keyhole.attach(model, PART) as attached:
        copied = COPIES[kind](model, tmp_path)
        assert attention_of(copied) == ([implementation] if kind != "save_pretrained" else ["sdpa"])
        if kind != "configuration":
            assert_same(answer(copied, prompt(60)), wanted)
        assert attached.cache is None
        with keyhole.attach(copied, PART) as other:
            copied.generate(prompt(60), max_new_tokens=3)
        assert other.usage.read < other.usage.tokens
        model.generate(prompt(60), max_new_tokens=3)
    assert attention_of(copied) == ([implementation] if kind != "save_pretrained" else ["sdpa"])
    assert attached.usage == other.usage or kind == "configuration"


@pytest.mark.parametrize("method", [PART, "chess(sparsity=0.5)"])
def test_a_model_that_is_never_detached_is_freed(method):
    model = fresh_model("llama")
    cache = keyhole.make_cache(model, method)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    with pytest.raises(keyhole.UnsupportedCacheError, match="the model of this cache no longer exists"):
        cache.model  # noqa: B018


def test_a_context_does_not_keep_what_a_block_served(model):
    with keyhole.attach(model, PART) as attached:
        model.generate(prompt(60), max_new_tokens=3)
    gone = weakref.ref(attached.cache)
    del attached
    gc.collect()
    assert gone() is None
