"""Requests of a vLLM engine, served by Keyhole."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import keyhole
from keyhole.core.errors import SpecError, UnsupportedModelError
from tests.engines.vllm import engines
from tests.engines.vllm.engines import answered, engine, gap, prompts, tokens, vllm

MODEL = str(Path(keyhole.__file__).parent / "models" / "default")
LENGTHS = [1, 2, 3, 5, 9, 15, 31, 32, 33, 63, 64, 100, 190, 333, 500, 750, 1111, 2000, 3333, 6000]
SMALL = "quest(budget=64, page=16, sinks=4, window=16, dense_below=0)"


def _layers(held):
    config = held.llm_engine.vllm_config
    return config, config.compilation_config.static_forward_context


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {kind: engines.random_model(kind, tmp_path_factory.mktemp(kind)) for kind in ("qwen3", "gemma2")}
    return made | {"embedded": MODEL}


@pytest.mark.parametrize("kind", ["embedded", pytest.param("qwen3", marks=pytest.mark.slow), "gemma2"])
def test_a_full_budget_answers_as_vllm_does(models, kind):
    """In one mixed batch: chunks of long prompts beside decode steps of short ones."""
    asked = prompts(LENGTHS)
    with engine(models[kind]) as held:
        config, layers = _layers(held)
        assert config.kv_transfer_config is None
        kinds = {type(layer.impl).__module__ for layer in layers.values()}
        assert kinds == {"vllm.v1.attention.backends.cpu_attn"}, "without the setting vLLM is its own"
        stock = answered(held, asked)
    with engine(models[kind], "quest(budget=8192, page=16, dense_below=0)") as held:
        kinds = {type(layer.impl).__name__ for layer in _layers(held)[1].values()}
        windowed = {"CPUAttentionBackendImpl"} if kind == "gemma2" else set()
        assert kinds == {"CPUImpl"} | windowed
        served = answered(held, asked)
    assert [tokens(one) for one in served] == [tokens(one) for one in stock]
    assert max(map(gap, served, stock)) < 1e-4
    assert all(one.kv_transfer_params["keyhole"]["share"] == 1 for one in served)


def test_a_small_budget(monkeypatch):
    """Its steps, its answers again by cached prefixes, and what vLLM offers beside."""
    asked = prompts([40, 300, 1500])
    with engine(MODEL, SMALL) as held:
        with engines.watched(monkeypatch) as seen:
            first = answered(held, asked)
        _reads_what_transformers_reads(monkeypatch, asked, first, seen)
        _prefixes_are_used_again(held, asked, first)
        _usage_is_told(first)
        _samples_share_a_prompt(held, asked)
        _stops(held)
        _streams(held, asked[1])
    assert max(error for _, error in seen.values()) < 1e-5


def _reads_what_transformers_reads(monkeypatch, asked, outputs, seen):
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    for prompt, output in zip(asked, outputs, strict=True):
        ids = torch.tensor([prompt["prompt_token_ids"]])
        with engines.watched(monkeypatch) as expected, keyhole.attach(model, SMALL):
            text = model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        assert text[0, ids.shape[1] :].tolist() == tokens(output)
        assert {at: picked for at, (picked, _) in expected.items()} == {at: seen[at][0] for at in expected}


def _prefixes_are_used_again(held, asked, first):
    written = []
    layer = next(iter(_layers(held)[1].values())).impl
    write = layer.do_kv_cache_update
    layer.do_kv_cache_update = lambda *args: (written.append(int((args[-1] >= 0).sum())), write(*args))
    again = answered(held, asked)
    del layer.do_kv_cache_update
    assert [tokens(one) for one in again] == [tokens(one) for one in first]
    assert max(map(gap, again, first)) < 1e-4
    cached = [one.num_cached_tokens for one in again]
    assert cached[2] >= 1500 - 64 - 2 * engines.BLOCK
    assert sum(written) == sum(len(one.prompt_token_ids) + 7 for one in again) - sum(cached)


def _usage_is_told(outputs):
    told = [one.kv_transfer_params["keyhole"] for one in outputs]
    assert [one["steps"] for one in told] == [6, 6, 6], "all but the last step"
    assert told[0]["share"] == 1.0, "a budget of 64 is more than there is"
    assert 0 < told[2]["share"] < 0.1


def _samples_share_a_prompt(held, asked):
    several = answered(held, asked[1:2], temperature=1.0, n=3, seed=1)[0]
    alone = answered(held, asked[1:2], temperature=1.0, n=3, seed=1)[0]
    texts = [list(one.token_ids) for one in several.outputs]
    assert texts == [list(one.token_ids) for one in alone.outputs]
    assert len(set(map(tuple, texts))) > 1


def _stops(held):
    tokenizer = held.get_tokenizer()
    asked = {"prompt_token_ids": tokenizer("The sky is blue and the grass is")["input_ids"]}
    whole = answered(held, [asked], max_tokens=24)[0].outputs[0].text
    stop = whole[len(whole) // 2 :][:3]
    ended = answered(held, [asked], max_tokens=24, stop=[stop])[0].outputs[0]
    assert ended.finish_reason == "stop"
    assert whole.startswith(ended.text)
    assert stop not in ended.text


def _streams(held, prompt):
    how = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
    kind = vllm.sampling_params.RequestOutputKind.DELTA
    held.llm_engine.add_request("stream", prompt, vllm.SamplingParams(**how, output_kind=kind))
    pieces = []
    while held.llm_engine.has_unfinished_requests():
        pieces += [list(out.outputs[0].token_ids) for out in held.llm_engine.step()]
    assert len(pieces) == 8
    assert list(itertools.chain(*pieces)) == tokens(answered(held, [prompt])[0])


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"method": "qest"}, SpecError, "qest"),
        ({"method": "quest", "ofload": "host"}, SpecError, "ofload"),
        ({"method": "chess"}, UnsupportedModelError, "skips weights"),
    ],
)
def test_a_bad_setting_stops_the_start(asked, error, said):
    with pytest.raises(error, match=said):
        vllm.LLM(model=MODEL, enforce_eager=True, additional_config={"keyhole": asked})
    vllm.distributed.cleanup_dist_env_and_memory()


def test_a_model_of_another_backend_is_refused(tmp_path):
    """It has none of the layers that Keyhole stands in for, and would be served without."""
    model = engines.random_model("deepseek", tmp_path)
    said = pytest.raises(UnsupportedModelError, match="latent attention")
    with said, engine(model, "quest", skip_tokenizer_init=True):
        pass
    vllm.distributed.cleanup_dist_env_and_memory()
