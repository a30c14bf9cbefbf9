"""Requests longer than vLLM's pool, blocks that are given back or taken away, and many requests at a time."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import keyhole
from tests.engines.vllm.engines import BLOCK, answered, engine, gap, gaps, prompts, tokens

MODEL = str(Path(keyhole.__file__).parent / "models" / "default")
POOL = 2560 // BLOCK
LONG = [6000, 300]
METHODS = [
    "pqcache(budget=96, sinks=4, window=32, subspaces=4, dense_below=0)",
    "quest(budget=96, page=16, sinks=4, window=32, dense_below=0)",
    "streamingllm(budget=160)",
    "snapkv(budget=160)",
]
DELTA = "delta(budget=64, window=16, sinks=4, dense_below=0)"


def _slow(method):
    return pytest.param(method, marks=pytest.mark.slow)


@pytest.fixture
def live(monkeypatch):
    """The most blocks that a request held at a time, by request."""
    from keyhole.engines.vllm.manager import KeyholeManager

    most, allocate = {}, KeyholeManager.allocate_new_blocks

    def counted(self, request, *args):
        new = allocate(self, request, *args)
        held = sum(not block.is_null for block in self.req_to_blocks[request])
        most[request] = max(most.get(request, 0), held)
        return new

    monkeypatch.setattr(KeyholeManager, "allocate_new_blocks", counted)
    return most


def scheduler(held):
    return held.llm_engine.engine_core.engine_core.scheduler


def requests():
    """What the worker holds for requests."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group()._server.requests


def check_nothing_is_left(held):
    """Neither blocks nor layer caches; the worker hears of the last request's end with the next step."""
    answered(held, prompts([3]), max_tokens=1)
    pool = scheduler(held).kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
    assert len(requests()) <= 1


def test_stock_vllm_refuses_the_pool():
    with pytest.raises((ValueError, RuntimeError)), engine(MODEL, num_gpu_blocks_override=POOL):
        pass


def test_a_request_longer_than_the_pool(live):
    asked = prompts(LONG)
    with engine(MODEL, num_gpu_blocks_override=8192 // BLOCK + 1) as held:
        stock = answered(held, asked)
    with engine(MODEL, "dense", offload="host", num_gpu_blocks_override=POOL) as held:
        served, again = answered(held, asked), answered(held, asked)
        hits = [answered(held, asked[1:])[0] for _ in range(2)]
        spec = scheduler(held).kv_cache_config.kv_cache_groups[0].kv_cache_spec
        check_nothing_is_left(held)
    for outputs in (served, again):
        assert list(map(tokens, outputs)) == list(map(tokens, stock))
        assert max(map(gap, outputs, stock)) < 1e-4
    assert list(map(tokens, hits)) == [tokens(stock[1])] * 2
    assert hits[1].num_cached_tokens == 300 // BLOCK * BLOCK
    assert max(live.values()) <= spec.most_blocks < POOL


@pytest.mark.parametrize("method", [METHODS[0], *map(_slow, METHODS[1:3]), METHODS[3]])
def test_methods_in_a_small_pool(method, live):
    asked, model = prompts(LONG), AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    with engine(MODEL, method, offload="host", num_gpu_blocks_override=POOL) as held:
        served = answered(held, asked)
        check_nothing_is_left(held)
    assert max(live.values()) < POOL
    for prompt, output in zip(asked, served, strict=True):
        ids = torch.tensor([prompt["prompt_token_ids"]])
        with keyhole.attach(model, method):
            text = model.generate(ids, max_new_tokens=8, do_sample=False)
        assert text[0, ids.shape[1] :].tolist() == tokens(output)


@pytest.mark.parametrize("method", [METHODS[0], _slow(DELTA)])
def test_preemption_changes_nothing(method, monkeypatch):
    """Requests that lose their blocks answer as those that do not."""
    from vllm.v1.core.sched.scheduler import Scheduler

    asked, lost, preempt = prompts([500, 480, 460, 440]), [], Scheduler._preempt_request
    monkeypatch.setattr(
        Scheduler, "_preempt_request", lambda self, *a, **k: (lost.append(a), preempt(self, *a, **k))[1]
    )
    with engine(MODEL, method, num_gpu_blocks_override=62, max_model_len=640) as held:
        calm = [answered(held, [one], max_tokens=120)[0] for one in asked]
        assert not lost
        held.reset_prefix_cache()
        pressed = answered(held, asked, max_tokens=120)
        check_nothing_is_left(held)
    assert lost
    assert list(map(tokens, pressed)) == list(map(tokens, calm))
    # Keys are rounded by the shapes of batches, which turns a few near ties of a selection; what that changes
    # has no bound, but it is rare.
    found = [one for pair in zip(pressed, calm, strict=True) for one in gaps(*pair)]
    assert sum(one > 1e-3 for one in found) < 0.1 * len(found)


@pytest.mark.parametrize("offload", [None, "host"])
def test_many_requests_answer_as_alone(offload):
    """64 at a time, in few blocks."""
    sizes = {"num_gpu_blocks_override": 200, "max_num_seqs": 64, "max_model_len": 1024}
    asked = prompts([20 + 5 * place for place in range(64)])
    with engine(MODEL, METHODS[1], offload=offload, **sizes) as held:
        together = answered(held, asked)
        check_nothing_is_left(held)
        held.reset_prefix_cache()
        alone = [answered(held, [one])[0] for one in asked[::16]]
    assert list(map(tokens, alone)) == list(map(tokens, together[::16]))
    assert max(map(gap, alone, together[::16])) < 1e-4
