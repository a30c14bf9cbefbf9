"""Steps by one native call are those of the layers, whatever came between."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import keyhole
from keyhole.core.errors import NonFiniteError
from keyhole.engines.transformers.steps import fused
from keyhole.engines.transformers.steps.whole import CacheSteps
from keyhole.kernels import native_available
from keyhole.kernels.backend.library import cpu_level, cpu_levels
from tests.tiny import fresh_model, prompt, tiny_model

pytestmark = pytest.mark.skipif(not native_available(), reason="no native library is built")

PART = "pqcache(budget=12, sinks=2, window=6, dense_below=0)"
METHODS = ["dense", PART, PART.replace("12", "0.4"), PART.replace("dense_below=0", "dense_below=50")]
FAMILIES = ["llama", "qwen3", "olmo2", "smollm3"]
STEPS = st.lists(
    st.sampled_from(
        ["step"] * 6 + ["crop", "reorder", "fork", "prompt", "mask", "thread", "listen", "empty"]
    ),
    min_size=4,
    max_size=24,
)


def in_a_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


class Life:
    """One cache through a sequence of operations; what came out of each call of the model."""

    def __init__(self, model, method, rows):
        self.model, self.cache = model, keyhole.KeyholeCache(model, method)
        self.out = []
        self.call(prompt(40, rows=rows))
        self.call(prompt(1, rows=rows))  # may end the prompt

    def call(self, ids, **options):
        with torch.no_grad():
            self.out.append(self.model(ids, past_key_values=self.cache, **options).logits)

    def run(self, operations):
        for number, operation in enumerate(operations):
            rows = self.out[-1].shape[0]
            one = prompt(1, rows=rows, seed=number)
            length = self.cache.get_seq_length()
            if operation == "crop" and length > 4:
                self.cache.crop(-3)
            elif operation == "empty":
                self.cache.reset()
                self.call(prompt(30, rows=rows, seed=number))
                self.call(one)
            elif operation == "reorder":
                self.cache.reorder_cache(torch.arange(rows).flip(0))
            elif operation == "fork":
                self.cache = copy.deepcopy(self.cache)
            elif operation == "prompt":
                self.call(prompt(5, rows=rows, seed=number))
            elif operation == "mask":
                mask = torch.ones(rows, length + 1, dtype=torch.long)
                mask[0, :2] = 0
                self.call(one, attention_mask=mask)
            elif operation == "thread":
                in_a_thread(lambda one=one: self.call(one))
            elif operation == "listen":
                heard, request = [], self.cache.layers[0].inner.request
                request.listener = heard.append
                self.call(one)
                assert len(heard) == len(self.cache.layers)
                request.listener = None
            self.call(one)


def lives(model, method, rows, operations, monkeypatch):
    """Two such lives, with the native call of whole steps and without; and how many of these there were."""
    taken, run = [], CacheSteps.run
    with monkeypatch.context() as patch, keyhole.attach(model):
        patch.setattr(CacheSteps, "run", lambda *args: counted(taken, run(*args)))
        fast = Life(model, method, rows)
        fast.run(operations)
        patch.setattr(fused, "takes_whole_steps", lambda _cache: False)
        plain = Life(model, method, rows)
        plain.run(operations)
    return fast, plain, sum(taken)


def counted(taken, found):
    taken.append(found is not None)
    return found


def assert_alike(fast, plain, tolerance=1e-4):
    for found, wanted in zip(fast.out, plain.out, strict=True):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    for own, other in zip(fast.cache.layers, plain.cache.layers, strict=True):
        assert own.inner.length == other.inner.length
        assert own.inner.indexed == other.inner.indexed
        found, wanted = vars(own.inner.usage), vars(other.inner.usage)
        assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=12, deadline=None)
@given(operations=STEPS, rows=st.sampled_from([1, 1, 3]), family=st.sampled_from(FAMILIES))
def test_any_life(method, operations, rows, family):
    model = tiny_model(family)
    with pytest.MonkeyPatch.context() as monkeypatch:
        fast, plain, taken = lives(model, method, rows, operations, monkeypatch)
    assert_alike(fast, plain)
    if method == "dense" and operations[-1] in ("step", "crop"):
        assert taken


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("level", cpu_levels())
@pytest.mark.parametrize("method", METHODS[:2])
def test_every_level_and_threads(method, level, threads, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with cpu_level(level):
            fast, plain, taken = lives(tiny_model("llama"), method, 2, ["step"] * 20, monkeypatch)
    finally:
        torch.set_num_threads(before)
    assert_alike(fast, plain)
    assert taken >= 14


def test_other_sizes_of_heads_are_left_to_the_layers(monkeypatch):
    model = fresh_model("llama", hidden_size=40, head_dim=10)
    fast, plain, taken = lives(model, "dense", 1, ["step"] * 4, monkeypatch)
    assert_alike(fast, plain)
    assert not taken


def test_bfloat16(monkeypatch):
    """Both round what goes to attention and what comes from it; sums within are in other orders."""
    model = fresh_model("llama").bfloat16()
    fast, plain, taken = lives(model, "dense", 1, ["step"] * 8, monkeypatch)
    assert taken
    for found, wanted in zip(fast.out, plain.out, strict=True):
        assert (found - wanted).norm() <= 2e-2 * wanted.norm()


@pytest.mark.parametrize("method", METHODS[:2])
def test_keys_that_are_not_finite_are_refused_and_nothing_changes(method):
    model, ids = fresh_model("llama"), prompt(40)
    with keyhole.attach(model, method) as attached, torch.no_grad():
        model(ids, use_cache=True)
        for _ in range(3):
            model(ids[:, :1], past_key_values=attached.cache)
        wanted = model(ids[:, 1:2], past_key_values=attached.cache).logits
        attached.cache.crop(-1)
        held = model.model.layers[1].self_attn.v_proj.weight.clone()
        model.model.layers[1].self_attn.v_proj.weight.mul_(torch.inf)
        with pytest.raises(NonFiniteError):
            model(ids[:, 1:2], past_key_values=attached.cache)
        model.model.layers[1].self_attn.v_proj.weight.copy_(held)
        attached.cache.roll_back()
        found = model(ids[:, 1:2], past_key_values=attached.cache).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_memory_is_let_go():
    """What steps know of a cache keeps neither it nor its buffers."""
    model, ids = tiny_model("llama"), prompt(40)
    with keyhole.attach(model), torch.no_grad():
        cache, another = (keyhole.KeyholeCache(model, "dense") for _ in range(2))
        for tokens in (ids, ids[:, :1], ids[:, :1]):
            model(tokens, past_key_values=cache)
        gone = weakref.ref(cache.layers[0].inner.storage.attention)
        assert gone() is not None
        model(ids, past_key_values=another)  # the block holds its latest cache
        del cache
        gc.collect()
        assert gone() is None
