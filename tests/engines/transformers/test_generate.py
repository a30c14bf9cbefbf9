"""Ways of generating: assisted, sampled, streamed, at a part of the budget, with several models at once."""

from contextvars import copy_context
from functools import partial
from threading import Thread

import pytest
import torch
from transformers import DynamicCache, TextIteratorStreamer

import keyhole
from keyhole.engines.transformers.compat import returned_cache
from tests.engines.transformers.running import answer, assert_same, given, left_padded
from tests.tiny import fresh_model, prompt, tiny_model

EVERYTHING = "oracle(mass=1.0, floor=1000000, sinks=2, window=6)"
PART = "oracle(budget=12, sinks=2, window=6)"
with_sliding_layers_or_not = pytest.mark.parametrize("family", ["llama", "gemma3", "gemma2"])


@with_sliding_layers_or_not
@pytest.mark.parametrize("method", ["dense", EVERYTHING])
def test_prompt_lookup(family, method):
    model = tiny_model(family)
    ids = prompt(40).repeat(1, 3)
    wanted = answer(model, ids, steps=8)
    with keyhole.attach(model, method):
        found = answer(model, ids, steps=8, prompt_lookup_num_tokens=4)
    assert_same(found, wanted)


@with_sliding_layers_or_not
@pytest.mark.parametrize("method", ["dense", EVERYTHING])
def test_assisted(family, method):
    model, assistant = tiny_model(family), tiny_model("llama", num_hidden_layers=1)
    ids = prompt(100)
    wanted = answer(model, ids, steps=8)
    with keyhole.attach(model, method), keyhole.attach(assistant, PART):
        assert_same(answer(model, ids, steps=8, assistant_model=assistant), wanted)


def test_the_model_assists_itself():
    """Drafts made from a part of the cache, checked against all of it."""
    model, reader = fresh_model("llama"), fresh_model("llama")
    ids = prompt(100)
    wanted = answer(model, ids, steps=8)
    with keyhole.attach(reader, PART) as attached:
        assert_same(answer(model, ids, steps=8, assistant_model=reader), wanted)
    assert attached.usage.read < attached.usage.tokens


def test_a_cache_made_without_configuration_can_be_assisted():
    """Its sliding layers must keep what a rejected draft needs when it is undone."""
    model = tiny_model("gemma3")
    ids = prompt(40).repeat(1, 3)
    wanted = answer(model, ids, steps=8)
    with keyhole.attach(model, EVERYTHING):
        options = {"prompt_lookup_num_tokens": 4, **given(DynamicCache())}
        assert_same(answer(model, ids, steps=8, **options), wanted)


@pytest.mark.parametrize("method", ["dense", EVERYTHING])
def test_sampling(method):
    model, ids = tiny_model("llama"), prompt(90)
    options = {"do_sample": True, "num_return_sequences": 2, "temperature": 0.7, "top_k": 20}
    torch.manual_seed(5)
    wanted = answer(model, ids, **options)
    with keyhole.attach(model, method):
        torch.manual_seed(5)
        assert_same(answer(model, ids, **options), wanted)


class Ids:
    """Stands for a tokenizer: words are token ids."""

    def decode(self, ids, **_options):
        return "".join(f"{int(i)} " for i in ids)


def streamed(model, ids, start, **options):
    """The tokens that a thread generates, of which `start` says how it runs."""
    streamer = TextIteratorStreamer(Ids(), skip_prompt=True, timeout=60)
    options |= {"max_new_tokens": 5, "do_sample": False, "streamer": streamer}
    worker = Thread(target=start, args=(partial(model.generate, ids, **options),))
    worker.start()
    text = "".join(streamer)
    worker.join()
    return [int(word) for word in text.split()]


def test_streaming_from_a_thread():
    model, ids = tiny_model("llama"), prompt(60)
    wanted = model.generate(ids, max_new_tokens=5, do_sample=False)[0, 60:].tolist()
    with keyhole.attach(model, EVERYTHING) as attached:
        assert streamed(model, ids, copy_context().run) == wanted
    assert attached.usage.steps == 4 * 2
    with keyhole.attach(model):
        cache = keyhole.KeyholeCache(model, EVERYTHING)
        assert streamed(model, ids, lambda work: work(), **given(cache)) == wanted
    assert cache.usage.steps == 4 * 2


def test_a_thread_without_a_block_is_not_served_in_silence():
    model, ids = tiny_model("llama"), prompt(60)
    wanted = model.generate(ids, max_new_tokens=5, do_sample=False)[0, 60:].tolist()
    with (
        pytest.raises(keyhole.NotServedError, match=r"contextvars.copy_context\(\).run"),
        keyhole.attach(model, PART) as attached,
    ):
        assert streamed(model, ids, lambda work: work()) == wanted
    assert attached.cache is None


@pytest.mark.parametrize("new_tokens", [2, 7])
def test_two_branches_of_a_request(new_tokens):
    """What is reported under `guidance_scale` is the branch that `generate` returns."""
    model, ids = tiny_model("llama"), prompt(60)
    asked = {"max_new_tokens": new_tokens, "do_sample": False, "return_dict_in_generate": True}
    with keyhole.attach(model, PART) as attached:
        model.generate(ids, **asked)
        alone = attached.usage, attached.footprint
        for _ in range(2):
            out = model.generate(ids, guidance_scale=1.5, **asked)
            assert attached.cache is returned_cache(out)
            assert attached.cache.get_seq_length() == 60 + new_tokens - 1
            assert (attached.usage.steps, attached.usage.tokens) == (alone[0].steps, alone[0].tokens)
            assert attached.footprint == alone[1]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt_oss", "qwen3_next"])
def test_rows_of_a_padded_batch_are_served_as_if_alone(family):
    model = tiny_model(family)
    prompts = prompt(130), prompt(70, seed=1), prompt(5, seed=2)
    ids, mask = left_padded(*prompts)
    with keyhole.attach(model, PART) as attached:
        together = answer(model, ids, mask=mask)
        assert attached.usage.read < attached.usage.tokens
        alone = [answer(model, row) for row in prompts]
    for row, single in enumerate(alone):
        torch.testing.assert_close(together.logits[:, row], single.logits[:, 0], rtol=1e-4, atol=1e-4)


def test_chunks_of_a_prompt_select_nothing():
    model, ids = tiny_model("llama"), prompt(110)
    with keyhole.attach(model, PART) as attached:
        whole = answer(model, ids)
        assert_same(answer(model, ids, prefill_chunk_size=16), whole)
        model(ids)
        assert attached.usage.steps == 0
        assert attached.layers[0].indexed == 0


def test_two_models_with_two_methods_step_by_step():
    first, second = fresh_model("llama"), fresh_model("gpt_oss")
    ids = prompt(100)
    with keyhole.attach(first, PART):
        wanted_first = answer(first, ids)
    wanted_second = answer(second, ids)
    with keyhole.attach(first, PART) as one, keyhole.attach(second, EVERYTHING) as other:
        found = interleaved((first, second), ids, steps=6)
    torch.testing.assert_close(found[0], wanted_first.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], wanted_second.logits, rtol=1e-4, atol=1e-4)
    assert one.usage.read < one.usage.tokens
    assert other.usage.read == other.usage.tokens


def ends_prompt(cache, tokens):
    """What `generate` knows: several tokens were the prompt, and those that come next are generated."""
    if tokens.shape[1] > 1:
        cache.prompt_length = tokens.shape[1]
    return cache


@torch.no_grad()
def interleaved(models, ids, steps):
    caches, tokens, logits = [None, None], [ids, ids], ([], [])
    for _ in range(steps):
        for i, model in enumerate(models):
            out = model(tokens[i], **given(caches[i]), use_cache=True)
            caches[i] = ends_prompt(returned_cache(out), tokens[i])
            tokens[i] = out.logits[:, -1:].argmax(-1)
            logits[i].append(out.logits[:, -1])
    return [torch.stack(rows) for rows in logits]


@torch.no_grad()
def test_two_requests_of_one_model_interleaved():
    model = tiny_model("llama")
    requests = [prompt(100), prompt(60, seed=1)]
    with keyhole.attach(model, PART):
        wanted = [answer(model, ids).logits for ids in requests]
        caches, tokens, logits = [None, None], list(requests), ([], [])
        for _ in range(6):
            for i in (0, 1):
                out = model(tokens[i], **given(caches[i]), use_cache=True)
                caches[i] = ends_prompt(returned_cache(out), tokens[i])
                tokens[i] = out.logits[:, -1:].argmax(-1)
                logits[i].append(out.logits[:, -1])
    for found, want in zip(logits, wanted, strict=True):
        torch.testing.assert_close(torch.stack(found), want, rtol=1e-4, atol=1e-4)
