"""A cache saved by one process and taken up by another."""

import json
import os
import random
import signal
import time

import pytest
import torch

import keyhole
from keyhole import KeyholeCache, SavedStateError, UnsupportedCacheError, load_cache, save_cache
from keyhole.core.generations import _sealed
from keyhole.engines.transformers import persist
from tests.engines.transformers.running import answer, assert_same
from tests.limits import limited_files
from tests.small import SELECTIVE, small
from tests.tiny import fresh_model, prompt, tiny_model

METHODS = [
    "dense",
    *(str(small(name, 20)) for name in SELECTIVE),
    "oracle(mass=0.9, floor=3, cap=0.5, sinks=2, window=6)",
    "pqcache(budget=20, sinks=2, window=6, bits=4, rotate=false)",
    "pqcache(error=0.3, sinks=2, window=6, bits=3, dense_below=0) + tail",
    "quest(budget=20, sinks=2, window=6, page=5)",
    "tokenselect(budget=20, sinks=2, window=6, reuse=0.5)",
    "shadowkv(budget=20, sinks=2, window=6, rank=8, outliers=2)",
    "tokenselect(budget=20, sinks=2, window=6, distance=20, renumber=true, reuse=0.5)",
    "pqcache(budget=20, sinks=2, window=6, distance=20, renumber=true, sparse_prefill=true)",
    "quest(budget=20, sinks=2, window=6, distance=20)",
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


@torch.no_grad()
def by_hand(model, cache, tokens, steps):
    """Logits of greedy steps of a loop that calls the model itself."""
    out = []
    for _ in range(steps):
        out.append(model(tokens, past_key_values=cache).logits[:, -1])
        tokens = out[-1].argmax(-1, keepdim=True)
    return torch.stack(out)


PROGRESS = {  # how many tokens came, whether and where the prompt was said to end, and what comes next
    "generating": ((90, 1, 1, 1), None, prompt(1, seed=5)),
    "end not said": ((90,), None, prompt(1, seed=5)),
    "end said": ((90,), 90, prompt(1, seed=5)),
    "end ahead": ((90,), 95, prompt(1, seed=5)),
    "a piece": ((90,), None, prompt(20, seed=5)),
    "token by token": ((1,) * 40, None, prompt(1, seed=5)),
}
LEARNING = ["pqcache(mass=0.9, dense_below=0, sinks=2, window=6)", "quest(mass=0.9, dense_below=0, sinks=2)"]


@pytest.mark.parametrize("method", ["pqcache(budget=20, sinks=2, window=6)", "h2o(budget=30)", *LEARNING])
@pytest.mark.parametrize("progress", PROGRESS)
def test_what_is_prompt_and_what_is_generated_is_saved(model, method, progress, tmp_path):
    pieces, end, coming = PROGRESS[progress]
    with keyhole.attach(model):
        cache = KeyholeCache(model, method)
        cache.prompt_length = end
        for seed, piece in enumerate(pieces):
            by_hand(model, cache, prompt(piece, seed=seed), 1)
        cache.save(tmp_path)
        loaded, used = KeyholeCache.load(tmp_path, model), cache.usage
        found, wanted = (by_hand(model, each, coming, 12) for each in (loaded, cache))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert loaded.usage.read == cache.usage.read - used.read


def test_a_weight_edited_behind_torch_is_seen(tmp_path):
    model = fresh_model("llama")
    filled(model, "dense").save(tmp_path)
    KeyholeCache.load(tmp_path, model)
    model.model.layers[0].self_attn.k_proj.weight.data[3, 7] += 1
    with pytest.raises(SavedStateError, match="the weights are others"):
        KeyholeCache.load(tmp_path, model)
    keyhole.detach(model)


def test_refuses_the_cache_of_another_model(model, tmp_path):
    filled(model, "dense").save(tmp_path)
    other = fresh_model("llama")
    other.model.embed_tokens.weight.data[0, 0] += 1
    with pytest.raises(SavedStateError, match=f"{tmp_path}.*another model: the weights are others"):
        KeyholeCache.load(tmp_path, other)
    other = fresh_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    with pytest.raises(SavedStateError, match=r"saved with rope_parameters=.*10000.*this model has .*500000"):
        KeyholeCache.load(tmp_path, other)
    with pytest.raises(SavedStateError, match=r"dtype \['float32'\]; this model has \['bfloat16'\]"):
        KeyholeCache.load(tmp_path, fresh_model("llama").bfloat16())


def test_the_file_says_what_it_is(model, tmp_path):
    filled(model, "snapkv(budget=0.5)").save(tmp_path)
    said = json.loads((tmp_path / "cache.json").read_text())
    assert said["method"].startswith("snapkv(budget=0.5")
    assert said["versions"].keys() == {"keyhole", "torch", "transformers"}
    assert said["model"]["config"]["model_type"] == "llama"
    assert [layer["class"] for layer in said["layers"]] == ["KeyholeLayer"] * 2
    assert KeyholeCache.load(tmp_path, model).method == said["method"]


def test_refuses_what_is_damaged_or_not_there(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        KeyholeCache.load(tmp_path, model)
    filled(model, "dense").save(tmp_path)
    manifest = tmp_path / "cache.json"
    held, text = json.loads(manifest.read_text()), manifest.read_text()
    tensors = tmp_path / held["file"]
    data = tensors.read_bytes()
    tensors.write_bytes(data[:-100])
    with pytest.raises(SavedStateError, match=f"{tensors}.*damaged.*save the cache again"):
        KeyholeCache.load(tmp_path, model)
    tensors.write_bytes(data)
    manifest.write_text(text.replace('"format": 2', '"format": 99'))
    with pytest.raises(SavedStateError, match="format 99, not 2"):
        KeyholeCache.load(tmp_path, model)
    manifest.write_text(json.dumps({"format": 1, "method": "dense", "model": "ab", "indexed": [0, 0]}))
    with pytest.raises(SavedStateError, match="format 1, not 2"):
        KeyholeCache.load(tmp_path, model)


def test_refuses_to_save_what_holds_nothing(model, tmp_path):
    with pytest.raises(keyhole.UnsupportedCacheError, match="a cache with tokens"):
        keyhole.KeyholeCache(model, "dense").save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_refuses_to_save_a_broken_off_request(model, tmp_path):
    cache = filled(model, "dense")
    cache.layers[1].inner.crop(50)
    with pytest.raises(UnsupportedCacheError, match="broke off"):
        cache.save(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_and_infinity_are_neither_saved_nor_loaded(model, tmp_path, number, monkeypatch):
    cache = filled(model, "dense")
    cache.layers[1].inner.storage.keys()[0, 0, 3, 0] = number
    with pytest.raises(SavedStateError, match=r"1\.inner\.storage\.keys holds NaN or infinity"):
        cache.save(tmp_path)
    monkeypatch.setattr(persist, "check_finite", lambda *_: None)
    cache.save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(SavedStateError, match=f"{tmp_path}.*1.inner.storage.keys holds NaN or infinity"):
        KeyholeCache.load(tmp_path, model)


def test_the_method_is_the_files_to_say(model, tmp_path):
    spec = "pqcache(budget=20, sinks=2, window=6)"
    cache = filled(model, spec)
    for other in ("quest", "pqcache(budget=20, sinks=2, window=6, subspaces=8)", f"sale + {spec}"):
        with pytest.raises(ValueError, match="the cache is of pqcache"):
            save_cache(cache, tmp_path, model=model, method=other)
    cache.save(tmp_path)
    for other in ("quest", "pqcache(budget=20, sinks=2, window=6, subspaces=8)"):
        with pytest.raises(
            SavedStateError, match=f"{tmp_path}: the cache is of pqcache.*only place, block_cache"
        ):
            KeyholeCache.load(tmp_path, model, other)


def resealed(directory, change):
    """Let a manifest be changed by somebody who knows how to seal it."""
    held = json.loads((directory / "cache.json").read_text())
    held.pop("digest")
    change(held)
    (directory / "cache.json").write_text(_sealed(json.dumps(held)))


@pytest.mark.parametrize("method", ["dense", "pqcache(budget=20, sinks=2, window=6)", "h2o(budget=0.5)"])
@pytest.mark.parametrize("how", ["missing", "shape", "dtype", "class", "attributes", "layers", "length"])
def test_states_of_another_form_are_refused(model, tmp_path, method, how, monkeypatch):
    cache = filled(model, method)
    real = persist.layer_state

    def other(layer):
        facts, tensors = real(layer)
        name = sorted(tensors)[0]
        if how == "missing":
            tensors.pop(name)
        elif how == "shape":
            tensors["inner.storage.keys"] = tensors["inner.storage.keys"][..., :3, :]
        elif how == "dtype":
            tensors["inner.storage.keys"] = tensors["inner.storage.keys"].to(torch.int32)
        elif how == "class":
            facts["class"] = "DynamicLayer"
        elif how == "attributes":
            facts["attributes"]["new"] = 1
        elif how == "length":
            facts["length"] += 1
        return facts, tensors

    monkeypatch.setattr(persist, "layer_state", other)
    cache.save(tmp_path)
    if how == "layers":
        resealed(tmp_path, lambda held: held["layers"].pop())
    with pytest.raises(SavedStateError, match=str(tmp_path)):
        KeyholeCache.load(tmp_path, model)


def test_writes_no_half_files(model, tmp_path):
    filled(model, "dense").save(tmp_path)
    file = json.loads((tmp_path / "cache.json").read_text())["file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".cache.lock", "cache.json", file])


HYBRID = ["gemma2", "gemma3", "gemma3n", "gpt_oss", "cohere2", "qwen3_next", "llama4"]


@pytest.mark.parametrize("tokens", [10, 100])
@pytest.mark.parametrize("family", HYBRID)
def test_hybrid_models_go_on(family, tokens, tmp_path):
    hybrid, method = fresh_model(family), "oracle(budget=20, sinks=2, window=6)"
    cache = keyhole.KeyholeCache(hybrid, method)
    with keyhole.attach(hybrid, method):
        answer(hybrid, prompt(tokens), past_key_values=cache, steps=5)
        cache.save(tmp_path)
        loaded = KeyholeCache.load(tmp_path, hybrid)
        more = torch.cat([prompt(tokens + 4), prompt(1, seed=1)], dim=1)
        found = answer(hybrid, more, past_key_values=loaded, steps=30)
        assert_same(found, answer(hybrid, more, past_key_values=cache, steps=30), tolerance=1e-6)


def test_layers_that_cannot_be_saved_are_named(tmp_path):
    hybrid = fresh_model("gemma3")
    cache = filled(hybrid, "dense")
    cache.layers[0].something = object()
    with pytest.raises(keyhole.UnsupportedCacheError, match=r"DynamicSlidingWindowLayer.*something"):
        cache.save(tmp_path)


def two_caches(model):
    for seed in (1, 2):
        cache = keyhole.KeyholeCache(model, "oracle(budget=20)")
        with keyhole.attach(model, "oracle(budget=20)"), torch.no_grad():
            model(prompt(600, seed=seed), past_key_values=cache)
        yield cache


def save_for_ever(caches, directory):
    try:
        while True:
            for cache in caches:
                cache.save(directory)
    finally:
        os._exit(1)


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_save_leaves_one_whole_cache(model, tmp_path, kills):
    """One process saves two caches in turn and is killed; another one saves on where it was left."""
    draw, caches = random.Random(0), list(two_caches(model))
    caches[0].save(tmp_path)
    wanted = [cache.layers[1].inner.storage.keys() for cache in caches]
    for _ in range(kills):
        writer = os.fork()
        if writer == 0:
            save_for_ever(caches, tmp_path)
        time.sleep(draw.uniform(0.02, 0.15))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        found = KeyholeCache.load(tmp_path, model).layers[1].inner.storage.keys()
        assert any(torch.equal(found, each) for each in wanted)
    caches[0].save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("saves", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_a_save_on_a_full_disk_leaves_the_old_cache(model, tmp_path, saves):
    draw, caches = random.Random(0), list(two_caches(model))
    caches[0].save(tmp_path)
    size = max(path.stat().st_size for path in tmp_path.iterdir())
    before = sorted(tmp_path.iterdir())
    for _ in range(saves):
        with limited_files(draw.randrange(size)), pytest.raises(OSError, match=f"File too large.*{tmp_path}"):
            caches[1].save(tmp_path)
        found = KeyholeCache.load(tmp_path, model).layers[1].inner.storage.keys()
        assert torch.equal(found, caches[0].layers[1].inner.storage.keys())
        assert sorted(tmp_path.iterdir()) == before
