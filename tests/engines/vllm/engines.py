"""vLLM engines for tests, in this process, on a CPU; only where vLLM is installed."""

import contextlib
import gc
import os
import random
from functools import partial

import pytest
import torch
import transformers

# Asked for when vLLM is imported. Two bound threads on busy cores wait for each other most of the time.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
vllm = pytest.importorskip(
    "vllm", reason="vLLM is not installed; `make test-vllm` has an environment with it"
)

from keyhole.methods import Recipe  # noqa: E402

BLOCK = 32
_SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 8192,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_KINDS = {
    "qwen3": ("Qwen3Config", {}),
    # Every other layer has a window and is left to vLLM; the others cap their logits.
    "gemma2": (
        "Gemma2Config",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 48,
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": 20.0,
            "tie_word_embeddings": True,
        },
    ),
    "deepseek": (
        "DeepseekV2Config",
        {
            "num_key_value_heads": 4,
            "head_dim": 16,
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "first_k_dense_replace": 2,
        },
    ),
}


def random_model(kind, path):
    """The path of a model of that family with random weights."""
    name, more = _KINDS[kind]
    torch.manual_seed(1)
    config = getattr(transformers, name)(**_SIZES | more)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return str(path)


@contextlib.contextmanager
def engine(model, method=None, *, offload=None, tokens=512, **more):
    """An engine, served by a method if one is given. All that is left of it is gone after the block."""
    options = {"method": method} | ({"offload": offload} if offload else {})
    served = {"additional_config": {"keyhole": options}} if method else {}
    held = vllm.LLM(
        model=model,
        dtype="float32",
        max_num_batched_tokens=tokens,
        block_size=BLOCK,
        enforce_eager=True,
        **{"max_num_seqs": 32, "seed": 0, "max_model_len": 8192} | served | more,
    )
    try:
        yield held
    finally:
        held.llm_engine.engine_core.shutdown()
        del held
        vllm.distributed.cleanup_dist_env_and_memory()
        gc.collect()


def prompts(lengths, vocabulary=280, seed=0):
    """Random prompts of these lengths."""
    draw = random.Random(seed)
    return [{"prompt_token_ids": [draw.randrange(4, vocabulary) for _ in range(n)]} for n in lengths]


def answered(held, asked, **params):
    """The outputs of greedy requests, all at once, in order."""
    how = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, "logprobs": 5} | params
    return held.generate(asked, vllm.SamplingParams(**how), use_tqdm=False)


def tokens(output):
    """What was generated."""
    return list(output.outputs[0].token_ids)


def gaps(one, other):
    """How far log-probabilities of two outputs are apart in each step, at most, of tokens that both have."""
    steps = zip(one.outputs[0].logprobs, other.outputs[0].logprobs, strict=True)
    return [max(abs(a[token].logprob - b[token].logprob) for token in a.keys() & b.keys()) for a, b in steps]


def gap(one, other):
    """How far log-probabilities of two outputs are apart at most."""
    return max(gaps(one, other))


def picks(read):
    """What a step read beside sinks and window, for each KV head."""
    counts = read.selection.counts[0].tolist()
    return [sorted(row[:n].tolist()) for row, n in zip(read.selection.slots[0], counts, strict=True)]


def _error(seen):
    """How far a step's attention is from attention, in torch, over what it read."""
    keys, values, read = seen.storage.keys()[0], seen.storage.values()[0], seen.read
    always = read.regions.always[0, : int(read.regions.always_counts[0])].long()
    query, worst = seen.query[0].unflatten(0, (keys.shape[0], -1)), 0.0
    for head, chosen in enumerate(picks(read)):
        slots = torch.cat([always, torch.tensor(chosen, dtype=torch.long)])
        weights = torch.softmax(query[head] @ keys[head, slots].T * seen.logits.scale, -1)
        out = read.part.out[0].unflatten(0, (keys.shape[0], -1))[head]
        worst = max(worst, float((weights @ values[head, slots] - out).abs().max()))
    return worst


@contextlib.contextmanager
def watched(monkeypatch):
    """What each selective step picked, and its error, by `(layer, tokens there are)`."""
    seen, made = {}, Recipe.layers

    def note(place, observation):
        seen[place, observation.storage.length] = picks(observation.read), _error(observation)

    def layers(self, info):
        held = made(self, info)
        for place, layer in enumerate(held):
            layer.observe(partial(note, place))
        return held

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "layers", layers)
        yield seen
