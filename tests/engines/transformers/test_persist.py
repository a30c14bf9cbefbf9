"""A cache saved by one process and taken up by another."""

import json

import pytest
import torch

import keyhole
from keyhole import load_cache, save_cache
from tests.engines.transformers.running import answer, assert_same
from tests.small import SELECTIVE, small
from tests.tiny import fresh_model, prompt, tiny_model

METHODS = [
    "dense",
    *(str(small(name, 20)) for name in SELECTIVE),
    "oracle(mass=0.9, floor=3, cap=0.5, sinks=2, window=6)",
    "pqcache(budget=20, sinks=2, window=6, bits=4, rotate=false)",
    "quest(budget=20, sinks=2, window=6, page=5)",
    "tokenselect(budget=20, sinks=2, window=6, reuse=0.5)",
    "shadowkv(budget=20, sinks=2, window=6, rank=8, outliers=2)",
    "tokenselect(budget=20, sinks=2, window=6, distance=20, renumber=true, reuse=0.5)",
    "shadowkv(budget=20, sinks=2, window=6, rank=8, outliers=0)",
    "shadowkv(budget=20, sinks=2, window=6, rank=8, outliers=2, place=disk)",
]


@pytest.fixture
def model():
    model = tiny_model("llama")
    yield model
    keyhole.detach(model)


def filled(model, method):
    cache = keyhole.make_cache(model, method)
    model.generate(prompt(100), max_new_tokens=20, do_sample=False, past_key_values=cache)
    return cache


@pytest.mark.parametrize("method", METHODS)
def test_goes_on_as_if_nothing_had_happened(model, method, tmp_path):
    cache = filled(model, method)
    save_cache(cache, tmp_path / "kept", model=model, method=method)
    loaded = load_cache(tmp_path / "kept", model)
    assert loaded.get_seq_length() == cache.get_seq_length() == 119
    more = torch.cat([prompt(119), prompt(1, seed=1)], dim=1)
    found = answer(model, more, past_key_values=loaded, steps=30)
    assert_same(found, answer(model, more, past_key_values=cache, steps=30), tolerance=1e-6)


def test_refuses_the_cache_of_another_model(model, tmp_path):
    save_cache(filled(model, "dense"), tmp_path, model=model, method="dense")
    other = fresh_model("llama")
    other.model.embed_tokens.weight.data[0, 0] += 1
    with pytest.raises(ValueError, match="belongs to another model"):
        load_cache(tmp_path, other)


def test_refuses_what_is_damaged_or_not_there(model, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_cache(tmp_path, model)
    save_cache(filled(model, "dense"), tmp_path, model=model, method="dense")
    tensors = tmp_path / "cache.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        load_cache(tmp_path, model)
    settings = tmp_path / "cache.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        load_cache(tmp_path, model)


def test_refuses_to_save_what_it_does_not_keep_whole(model, tmp_path):
    with pytest.raises(keyhole.UnsupportedCacheError, match="holds tokens"):
        save_cache(keyhole.make_cache(model, "dense"), tmp_path, model=model, method="dense")
    hybrid = tiny_model("gemma3")
    cache = filled(hybrid, "dense")
    keyhole.detach(hybrid)
    with pytest.raises(keyhole.UnsupportedCacheError, match="1 of 2 layers"):
        save_cache(cache, tmp_path, model=hybrid, method="dense")
    assert list(tmp_path.iterdir()) == []


def test_writes_no_half_files(model, tmp_path):
    save_cache(filled(model, "dense"), tmp_path, model=model, method="dense")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache.json", "cache.safetensors"]
