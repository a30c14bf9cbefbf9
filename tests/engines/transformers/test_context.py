"""Requests of one model never mix: each thread and each task is served by its own block, or not at all."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from threading import Barrier, Thread
from typing import NamedTuple

import pytest
import torch

import keyhole
from keyhole.engines.transformers.compat import returned_cache
from tests.engines.transformers.running import answer, assert_same, attention_of, given
from tests.tiny import fresh_model, prompt

COMMON = "budget=12, sinks=2, window=6"
METHODS = [
    "dense",
    f"oracle({COMMON})",
    f"quest(page=4, {COMMON})",
    f"pqcache(subspaces=8, bits=4, {COMMON})",
    f"tokenselect({COMMON})",
    "streamingllm(budget=20, sinks=2)",
    "snapkv(budget=20, sinks=2, window=6)",
    "h2o(budget=20, sinks=2, window=6)",
]
PLAIN = None  # no block at all
EVERYTHING = "oracle(mass=1.0, floor=1000000, sinks=2, window=6)"


class Served(NamedTuple):
    tokens: list
    usage: object
    bytes: object


def serve(model, method, ids, steps=3):
    asked = {"max_new_tokens": steps, "do_sample": False}
    if method is PLAIN:
        return Served(model.generate(ids, **asked).tolist(), None, None)
    with keyhole.attach(model, method) as attached:
        tokens = model.generate(ids, **asked).tolist()
        assert attached.method == str(keyhole.Recipe.parse(method))
        return Served(tokens, attached.usage, attached.footprint)


@pytest.fixture
def model():
    return fresh_model("llama", num_hidden_layers=1)


def together(work, *, times=1):
    """Run each piece of work in a thread of its own, as many times, all at once."""
    barrier = Barrier(len(work), timeout=60)

    def run(piece):
        barrier.wait()
        return [piece() for _ in range(times)]

    with ThreadPoolExecutor(len(work)) as pool:
        return [future.result() for future in [pool.submit(run, piece) for piece in work]]


@pytest.mark.parametrize(
    ("threads", "times"),
    [
        (METHODS, 2),
        ([*METHODS[1:5], *[PLAIN] * 4], 3),
        pytest.param(METHODS, 50, marks=pytest.mark.slow),
    ],
)
def test_threads_with_a_method_each(model, threads, times):
    prompts = [prompt(40 + 3 * i, seed=i) for i in range(len(threads))]
    alone = [serve(model, *each) for each in zip(threads, prompts, strict=True)]
    work = [partial(serve, model, *each) for each in zip(threads, prompts, strict=True)]
    for want, found in zip(alone, together(work, times=times), strict=True):
        assert found == [want] * times
    assert attention_of(model) == ["sdpa"]
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_threads_with_two_models():
    models = fresh_model("llama"), fresh_model("gemma2")  # the latter with soft-capped logits
    pairs = [(models[i % 2], METHODS[i], prompt(50, seed=i)) for i in range(6)]
    pairs += [(model, PLAIN, prompt(50, seed=9)) for model in models]
    alone = [serve(*pair) for pair in pairs]
    for want, found in zip(alone, together([partial(serve, *pair) for pair in pairs], times=4), strict=True):
        assert found == [want] * 4


@torch.no_grad()
def test_tasks_with_a_method_each(model):
    """Their steps interleave, in one thread."""
    prompts = [prompt(40 + 3 * i, seed=i) for i in range(8)]

    async def work(method, ids):
        with ExitStack() as stack:
            attached = stack.enter_context(keyhole.attach(model, method)) if method else None
            cache, tokens, found = None, ids, []
            for _ in range(4):
                await asyncio.sleep(0)
                out = model(tokens, use_cache=True, **given(cache))
                cache, tokens = returned_cache(out), out.logits[:, -1:].argmax(-1)
                found.append(tokens.item())
            return found, attached and attached.usage

    async def gather(methods):
        return await asyncio.gather(*(work(*each) for each in zip(methods, prompts, strict=True)))

    methods = [*METHODS[:6], PLAIN, PLAIN]
    alone = [asyncio.run(work(*each)) for each in zip(methods, prompts, strict=True)]
    assert asyncio.run(gather(methods)) == alone


def test_what_is_started_from_a_block_is_served_by_it(model):
    ids = prompt(60)

    async def work():
        with keyhole.attach(model, METHODS[1]) as attached:
            await asyncio.create_task(asyncio.to_thread(model.generate, ids, max_new_tokens=3))
            return attached.usage

    assert asyncio.run(work()) == serve(model, METHODS[1], ids).usage


def test_a_task_that_outlives_the_block_is_served_plainly(model):
    async def work():
        ended = asyncio.Event()

        async def later():
            await ended.wait()
            return returned_cache(model(prompt(40), use_cache=True))

        with keyhole.attach(model, METHODS[1]):
            task = asyncio.create_task(later())
            await asyncio.sleep(0)
        ended.set()
        return await task

    assert not isinstance(asyncio.run(work()), keyhole.KeyholeCache)


@pytest.mark.parametrize(
    ("family", "implementation"),
    [("llama", "sdpa"), ("llama", "eager"), ("gemma2", "eager"), ("gpt_oss", "eager")],
)
@torch.no_grad()
def test_a_call_sees_one_attention_from_its_mask_to_its_last_layer(family, implementation):
    """A block that begins, or ends, while a plain call is between two layers."""
    model, ids = fresh_model(family), prompt(50)
    model.set_attn_implementation(implementation)
    wanted = model(ids).logits
    block = ExitStack()
    for move in (lambda: block.enter_context(keyhole.attach(model, "dense")), block.close):
        moves = [move]

        def once(*_call, moves=moves):  # `attach` calls the model, too
            if moves:
                in_a_thread(moves.pop())

        hook = model.model.layers[1].register_forward_pre_hook(once)
        torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-4, atol=1e-4)
        hook.remove()
        assert not moves
    assert attention_of(model) == [implementation]
    assert not model._forward_hooks


def in_a_thread(work):
    thread = Thread(target=work)
    thread.start()
    thread.join()


@torch.no_grad()
def test_a_served_call_outlives_a_block_of_another_thread(model):
    cache, ids, block = keyhole.KeyholeCache(model, METHODS[2]), prompt(50), ExitStack()
    in_a_thread(lambda: block.enter_context(keyhole.attach(model)))
    hook = model.model.layers[0].register_forward_pre_hook(lambda *_: in_a_thread(block.close))
    model(ids, **given(cache))
    hook.remove()
    assert cache.get_seq_length() == 50
    assert attention_of(model) == ["sdpa"]


def test_blocks_of_generators(model):
    """Blocks that overlap in one thread: a request goes on in the block that it was begun in."""

    @torch.no_grad()
    def steps(method, ids):
        with keyhole.attach(model, method) as attached:
            cache, tokens = None, ids
            while True:
                out = model(tokens, use_cache=True, **given(cache))
                cache, tokens = returned_cache(out), out.logits[:, -1:].argmax(-1)
                yield attached.usage

    def third(work):
        return [next(work) for _ in range(3)][-1]

    alone = [third(steps(method, prompt(60))) for method in (METHODS[1], METHODS[5])]
    first, second = steps(METHODS[1], prompt(60)), steps(METHODS[5], prompt(60))
    next(first), next(second), next(first), next(second)
    assert [next(first), next(second)] == alone
    first.close()
    del second
    assert attention_of(model) == ["sdpa"]


def test_a_block_closed_by_another_thread(model):
    block = ExitStack()
    block.enter_context(keyhole.attach(model, METHODS[1]))
    in_a_thread(block.close)
    wanted = answer(fresh_model("llama", num_hidden_layers=1), prompt(50))
    assert_same(answer(model, prompt(50)), wanted)
    assert attention_of(model) == ["sdpa"]


def test_an_interrupted_call_does_not_keep_the_switch(model):
    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.model.layers[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), keyhole.attach(model, METHODS[1]):
        model(prompt(40))
    hook.remove()
    assert attention_of(model) == ["sdpa"]
    assert not model._forward_hooks


def unserved(model, call, reason):
    with pytest.raises(keyhole.NotServedError, match=reason), keyhole.attach(model, METHODS[1]):
        call()


class TestNothingWasServed:
    """Leaving a block raises if the model was called with a cache wanted, and no step went through."""

    def test_a_part_of_the_model(self, model):
        def call():
            out = model.model(prompt(40), use_cache=True)
            model.model(prompt(1), **given(returned_cache(out)))

        unserved(model, call, "call the model itself")

    def test_no_method(self, model):
        with pytest.raises(keyhole.NotServedError, match="no method was given"), keyhole.attach(model):
            model(prompt(40), use_cache=True)

    def test_a_model_that_leaves_its_cache_out(self, model):
        def call():
            forward = model.model.forward
            model.model.forward = lambda *args, **options: forward(*args, **options | given(None))
            model(prompt(40), use_cache=True)

        unserved(model, call, "no keys came to the cache")

    def test_activation_checkpointing_that_begins_in_the_block(self, model):
        def call():
            model.train().gradient_checkpointing_enable()
            model(prompt(40), use_cache=True)

        unserved(model, call, "checkpointing leaves caches out in training mode")

    def test_not_where_nothing_was_asked(self, model):
        with keyhole.attach(model, METHODS[1]):
            pass
        with keyhole.attach(model, METHODS[1]):
            model(prompt(40), use_cache=False)

    def test_not_over_another_error(self, model):
        with pytest.raises(ZeroDivisionError), keyhole.attach(model):
            model(prompt(40), use_cache=bool(model(prompt(40), use_cache=True)) / 0)

    def test_not_where_the_call_failed(self, model):
        with keyhole.attach(model, METHODS[1]), pytest.raises(TypeError):
            model(prompt(40), use_cache=True, nonsense=1, **{"logits_to_keep": "many"})
