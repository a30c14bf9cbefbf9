"""Decode steps of fixed size give the tokens of ordinary ones, and leave an ordinary cache behind."""

import pytest
import torch

import keyhole
from keyhole.core.errors import NonFiniteError, UnsupportedCacheError
from keyhole.engines.transformers.cache import end_prompt
from tests.engines.transformers.running import given
from tests.steps import indexed_one_by_one
from tests.tiny import fresh_model, prompt, tiny_model
from tests.waiting import as_if_on_gpu, without_waiting

COMMON = "budget=20, sinks=2, window=6, dense_below=0"
UNFITTED = [
    f"tokenselect({COMMON})",
    f"tokenselect(distance=30, per_head=true, {COMMON})",
    f"delta(page=4, {COMMON})",
    f"oracle({COMMON})",
]
SPECS = [
    "dense",
    f"pqcache(subspaces=8, bits=4, {COMMON})",
    f"a2ats(distance=30, codewords=16, {COMMON})",
    f"quest(page=4, {COMMON})",
    f"shadowkv(chunk=4, rank=32, outliers=1, {COMMON})",
    *UNFITTED,
]
FAMILIES = ["llama", "qwen2", "qwen3", "qwen3_moe", "phi3", "olmo2", "glm4", "granite"]
NEW = 12
# Codes so fine that an index does not depend on the moment it was made.
FINE = f"pqcache(subspaces=16, bits=8, {COMMON})"


def greedy(model, cache, tokens, count):
    """Ordinary steps; the logits of each."""
    found = []
    for _ in range(count):
        logits = model(input_ids=tokens, **given(cache), use_cache=True).logits[:, -1]
        found.append(logits)
        tokens = logits.argmax(-1, keepdim=True)
    return found


def stepped(model, cache, tokens, count, **options):
    found = []
    with keyhole.captured(model, cache, new_tokens=count, **options) as step:
        for _ in range(count):
            logits = step(tokens).clone()
            found.append(logits)
            tokens = logits.argmax(-1, keepdim=True)
    return found


def filled(model, spec, tokens, **options):
    cache = keyhole.make_cache(model, spec)
    cache.prompt_length = tokens.shape[1]
    with torch.no_grad():
        model(input_ids=tokens, **given(cache), use_cache=True, **options)
        for layer in keyhole.served_layers(cache):
            layer.prepare()  # or else an ordinary step's index would know the first new token
    indexed_one_by_one(keyhole.served_layers(cache))
    return cache


def places(step):
    """Where what is stored lies."""
    return [held.data_ptr() for layer in step.layers for held in layer.storage.state().values()]


@pytest.fixture(autouse=True)
def _restored():
    yield
    for family in FAMILIES:
        keyhole.detach(tiny_model(family))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_steps_give_the_same_logits(family, spec):
    model, ids = tiny_model(family), prompt(80, rows=2)
    ordinary, fixed = (filled(model, spec, ids[:, :-1]) for _ in range(2))
    expected = greedy(model, ordinary, ids[:, -1:], NEW)
    found = stepped(model, fixed, ids[:, -1:], NEW)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", [spec.replace("page=4", "page=1") for spec in SPECS])
@torch.no_grad()
def test_an_ordinary_cache_is_left(spec):
    """Another block, a turn and ordinary steps behind it."""
    model, ids, turn = tiny_model("llama"), prompt(80), prompt(9, seed=3)
    ordinary, fixed = (filled(model, spec, ids) for _ in range(2))
    expected, found = [], []
    for cache, told in ((ordinary, expected), (fixed, found)):
        steps = greedy if cache is ordinary else stepped
        told += steps(model, cache, ids[:, :1], 5)
        told += steps(model, cache, ids[:, 1:2], 3)
        assert cache.get_seq_length() == 88
        told.append(model(input_ids=turn, **given(cache), use_cache=True).logits[:, -1])
        end_prompt(cache)
        told += greedy(model, cache, turn[:, :1], 4)
        cache.crop(-10)
        told += greedy(model, cache, turn[:, :1], 4)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-4, atol=1e-4)
    usages = keyhole.usage(ordinary), keyhole.usage(fixed)
    assert usages[0].steps == usages[1].steps
    assert usages[1].read == pytest.approx(usages[0].read)
    assert usages[1].tokens == pytest.approx(usages[0].tokens)
    if not spec.startswith(("a2ats", "shadowkv")):  # whose estimate is corrected in ordinary steps only
        assert usages[1].mass == pytest.approx(usages[0].mass, rel=1e-3)


@pytest.mark.parametrize("spec", ["dense", FINE, f"quest(page=1, {COMMON})", *UNFITTED])
@torch.no_grad()
def test_padded_batches(spec):
    model, ids = tiny_model("llama"), prompt(320, rows=2)
    mask = torch.ones(2, 320, dtype=torch.long)
    mask[1, :17] = 0
    with keyhole.attach(model, spec):
        asked = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False}
        expected = model.generate(ids, **asked)
        found = model.generate(ids, custom_generate=keyhole.cuda_graph_generate, **asked)
    assert torch.equal(found, expected)


@torch.no_grad()
def test_generation_stops_row_by_row():
    model, ids = tiny_model("llama"), prompt(320, rows=3)
    with keyhole.attach(model, FINE):
        free = model.generate(ids, max_new_tokens=NEW, do_sample=False)
        asked = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": int(free[1, 323])}
        expected = model.generate(ids, **asked)
        found = model.generate(ids, custom_generate=keyhole.cuda_graph_generate, **asked)
    assert torch.equal(found, expected)


def test_sampling_draws_what_generate_draws():
    model, ids = tiny_model("llama"), prompt(320)
    with keyhole.attach(model, FINE):
        torch.manual_seed(5)
        expected = model.generate(ids, max_new_tokens=NEW, do_sample=True, top_k=20)
        torch.manual_seed(5)
        found = model.generate(
            ids, custom_generate=keyhole.cuda_graph_generate, max_new_tokens=NEW, do_sample=True, top_k=20
        )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_nothing_in_a_step_waits(spec, monkeypatch):
    """So that it can be captured: the kernels interpreted, the model's own code as it is."""
    model, ids = tiny_model("llama"), prompt(40)
    cache = filled(model, spec, ids)
    with keyhole.captured(model, cache, new_tokens=3) as step:
        expected = step(ids[:, :1]).clone()
        step.rewind()
        with as_if_on_gpu(monkeypatch), without_waiting(monkeypatch):
            found = step(ids[:, :1])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        before = places(step)
        step(ids[:, :1])
        assert places(step) == before


@torch.no_grad()
def test_what_is_not_finite_is_told_at_the_end():
    model, ids = fresh_model("llama"), prompt(60)
    cache = filled(model, SPECS[1], ids)
    steps = keyhole.captured(model, cache, new_tokens=2)
    step = steps.__enter__()
    step(ids[:, :1])
    model.model.layers[0].self_attn.k_proj.weight[0, 0] = torch.nan
    step(ids[:, :1])
    with pytest.raises(NonFiniteError):
        steps.__exit__(None, None, None)
    assert cache.get_seq_length() == 60


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("pqcache(mass=0.9, sinks=2, window=6, bits=4, subspaces=8, dense_below=0)", "tokens or a fraction"),
        (f"tokenselect(reuse=0.9, {COMMON})", "reuse"),
        ("snapkv(budget=20, sinks=2, window=6)", "drops tokens"),
        (f"pqcache(place=host, {COMMON})", "PlacedStorage"),
    ],
)
def test_methods_without_fixed_steps_are_refused(spec, said):
    model, ids = tiny_model("llama"), prompt(60)
    cache = filled(model, spec, ids)
    with (
        pytest.raises(ValueError, match=f"{spec.split('(')[0]}.*{said}"),
        keyhole.captured(model, cache, new_tokens=2),
    ):
        pass
    greedy(model, cache, ids[:, :1], 2)


def test_caches_that_grow_by_copies_are_refused():
    model, ids = tiny_model("gemma3"), prompt(60)
    cache = filled(model, "dense", ids)
    with (
        pytest.raises(UnsupportedCacheError, match="decode without capturing"),
        keyhole.captured(model, cache, new_tokens=2),
    ):
        pass
    keyhole.detach(model)


@pytest.mark.parametrize("spec", SPECS)
def test_room_is_kept_to(spec):
    model, ids = tiny_model("llama"), prompt(30)
    cache = filled(model, spec, ids)
    with keyhole.captured(model, cache, new_tokens=1) as step:
        step(ids[:, :1])
        with pytest.raises(ValueError, match="1 reserved new tokens"):
            step(ids[:, :1])
    assert cache.get_seq_length() == 31


@torch.no_grad()
def test_a_layer_without_memory_leaves_the_others_as_they_were():
    model, ids, spec = tiny_model("llama"), prompt(60), f"quest(page=4, {COMMON})"
    ordinary, cache = (filled(model, spec, ids) for _ in range(2))
    keyhole.served_layers(cache)[1].selector.reserve = lambda _: torch.empty(1 << 60)
    with pytest.raises(RuntimeError), keyhole.captured(model, cache, new_tokens=2):
        pass
    assert cache.get_seq_length() == 60
    expected, found = (greedy(model, each, ids[:, :1], 2) for each in (ordinary, cache))
    torch.testing.assert_close(found, expected)


def test_beams_are_refused():
    model = tiny_model("llama")
    with keyhole.attach(model, "dense"), pytest.raises(ValueError, match="num_beams"):
        model.generate(prompt(30), custom_generate=keyhole.cuda_graph_generate, num_beams=2, max_new_tokens=2)
