"""A model answers the same wherever its keys and values live, and goes on from a saved cache."""

import pytest
import torch

import keyhole
from keyhole import load_cache, save_cache
from tests.engines.transformers.running import answer, assert_same
from tests.tiny import prompt, tiny_model

METHODS = ["oracle(budget=20, sinks=2, window=6{})", "pqcache(budget=20, sinks=2, window=6, bits=4{})"]
PLACES = [
    ", place=host",
    ", place=disk",
    ", place=disk, block_cache='1MB'",
    ", place=host, block_cache='200KB', block_eviction=lru",
]
ROUNDED = [", kv_dtype=int8", ", place=disk, kv_dtype=int4", ", place=disk, kv_dtype=int8, block_cache='1MB'"]


@pytest.fixture
def model():
    model = tiny_model("llama")
    yield model
    keyhole.detach(model)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", PLACES)
def test_the_same_answer_as_from_the_device(model, method, place):
    ids = prompt(400, rows=2)
    with keyhole.attach(model, method.format("")):
        wanted = answer(model, ids, steps=20)
    with keyhole.attach(model, method.format(place)) as attached:
        assert_same(answer(model, ids, steps=20), wanted)
    held = attached.footprint
    assert (held.disk > 0) == ("disk" in place)
    assert (held.host > 0) == ("host" in place)
    assert (attached.usage.hits > 0) == ("cache" in place)


def test_8_bits_answer_nearly_the_same(model):
    ids = prompt(400)
    with keyhole.attach(model, "dense"):
        wanted = answer(model, ids, steps=5)
    with keyhole.attach(model, "oracle(budget=1.0, kv_dtype=int8)"):
        found = answer(model, ids, steps=5)
    scale = wanted.logits.std()
    assert (found.logits[0] - wanted.logits[0]).abs().max() < 0.1 * scale


@pytest.mark.parametrize("place", PLACES + ROUNDED)
@pytest.mark.parametrize("method", METHODS)
def test_a_saved_cache_goes_on(model, method, place, tmp_path):
    spec, ids = method.format(place), prompt(300)
    cache = keyhole.make_cache(model, spec)
    model.generate(ids, max_new_tokens=5, do_sample=False, past_key_values=cache)
    save_cache(cache, tmp_path, model=model, method=spec)
    loaded = load_cache(tmp_path, model)
    more = torch.cat([prompt(304), prompt(1, seed=1)], dim=1)
    found = answer(model, more, past_key_values=loaded, steps=20)
    assert_same(found, answer(model, more, past_key_values=cache, steps=20), tolerance=1e-5)


def test_a_cache_saved_on_disk_is_taken_up_on_the_device(model, tmp_path):
    on_disk, here = METHODS[0].format(", place=disk"), METHODS[0].format("")
    cache = keyhole.make_cache(model, on_disk)
    model.generate(prompt(300), max_new_tokens=5, do_sample=False, past_key_values=cache)
    cache.save(tmp_path / "disk")
    assert keyhole.KeyholeCache.load(tmp_path / "disk", model).footprint.disk > 0
    loaded = keyhole.KeyholeCache.load(tmp_path / "disk", model, here)
    assert loaded.footprint.disk == 0 < loaded.footprint.device
    save_cache(cache, tmp_path / "here", model=model, method=here)
    assert load_cache(tmp_path / "here", model).footprint.device > 0


@pytest.mark.parametrize("place", ROUNDED)
def test_beams_padding_and_chunks_work_with_rounded_keys(model, place):
    ids = prompt(300, rows=2)
    mask = torch.ones_like(ids)
    mask[1, :70] = 0
    with keyhole.attach(model, METHODS[0].format(place)) as attached:
        out = model.generate(ids, attention_mask=mask, max_new_tokens=8, num_beams=2, do_sample=False)
        model.generate(ids[:1], max_new_tokens=3, do_sample=False, prefill_chunk_size=50)
    assert out.shape == (2, 308)
    assert attached.usage.steps > 0
