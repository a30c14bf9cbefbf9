"""A call that breaks off: what is left is the answer there would have been, or a refusal; nothing else."""

import copy
import pickle
from functools import partial

import pytest
import torch

import keyhole
from tests.engines.transformers.running import answer, assert_same, given
from tests.small import SELECTIVE, small
from tests.tiny import fresh_model, prompt, tiny_model

BUDGET = "budget=20, sinks=2, window=6"
EVICTING = [
    "streamingllm(budget=20, sinks=2)",
    *(f"{name}({BUDGET})" for name in ("snapkv", "h2o", "keyformer", "pyramidkv", "adakv")),
]
METHODS = ["dense", *(str(small(name, 20)) for name in SELECTIVE), *EVICTING, "sale(dense_below=0)"]
NOTING = [str(small("infllm", 20))]  # what a query gave to earlier tokens cannot be taken back
DISK = f"quest(page=4, place=disk, dense_below=0, {BUDGET})"


def interrupted(*_call):
    raise KeyboardInterrupt


def raised(error, *_call):
    raise error


def failed(*_call):
    raise OSError(28, "No space left on device")


def broken(method, *, layer, error, prompt_first=True):
    """A model and a cache of 60 tokens, of whose second call one layer failed, before or in its attention."""
    model = fresh_model("llama")
    cache = keyhole.KeyholeCache(model, method)
    turn = prompt(5, seed=1)
    with torch.no_grad(), keyhole.attach(model):
        if prompt_first:
            model(prompt(60), **given(cache))
        hook = model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(error)
        with pytest.raises((KeyboardInterrupt, OSError)):
            model(turn, **given(cache))
        hook.remove()
    return model, cache, turn


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("layer", "error"), [(0, interrupted), (1, failed)])
@torch.no_grad()
def test_a_broken_cache_is_refused_until_it_is_rolled_back(method, layer, error):
    model, cache, turn = broken(method, layer=layer, error=error)
    with keyhole.attach(model):
        for call in (lambda: model(turn, **given(cache)), lambda: cache.crop(-1)):
            with pytest.raises(keyhole.UnsupportedCacheError, match="broke off"):
                call()
        if method in EVICTING + NOTING:
            with pytest.raises(keyhole.UnsupportedCacheError, match="start a new cache"):
                cache.roll_back()
            return
        cache.roll_back()
        whole = keyhole.KeyholeCache(model, method)
        model(prompt(60), **given(whole))
        found, wanted = (go_on(model, each, turn) for each in (cache, whole))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def go_on(model, cache, turn):
    """Logits of a turn's last token, and of the tokens after it."""
    tokens = [turn, *(prompt(1, seed=seed) for seed in range(4))]
    return torch.stack([model(piece, **given(cache)).logits[:, -1] for piece in tokens])


@pytest.mark.parametrize("method", [str(small(name, 20)) for name in ("quest", "pqcache", "delta")])
@torch.no_grad()
def test_what_is_generated_is_known_after_a_call_was_taken_back(method):
    """The first token after a prompt may be its last piece: also if it comes a second time."""
    model = fresh_model("llama")
    cache, whole = keyhole.KeyholeCache(model, method), keyhole.KeyholeCache(model, method)
    with keyhole.attach(model):
        for each in (cache, whole):
            model(prompt(60), **given(each))
        hook = model.model.layers[1].mlp.register_forward_pre_hook(failed)
        with pytest.raises(OSError, match="No space"):
            model(prompt(1), **given(cache))
        hook.remove()
        cache.roll_back()
        found, wanted = (go_on(model, each, prompt(1)) for each in (cache, whole))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert cache.usage.steps == whole.usage.steps


@pytest.mark.parametrize("method", ["dense", str(small("quest", 20)), EVICTING[1]])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@torch.no_grad()
def test_a_layer_that_was_changing_is_not_rolled_back(method, error, monkeypatch):
    model = fresh_model("llama")
    cache = keyhole.KeyholeCache(model, method)
    with keyhole.attach(model):
        model(prompt(60), **given(cache))
        storage = keyhole.served_layers(cache)[1].storage
        with monkeypatch.context() as patch:
            for name in ("append", "append_finite"):
                patch.setattr(storage, name, partial(raised, error))
            with pytest.raises(error):
                model(prompt(5), **given(cache))
        for call in (lambda: model(prompt(5), **given(cache)), cache.roll_back):
            with pytest.raises(keyhole.UnsupportedCacheError, match="start a new cache"):
                call()
        cache.reset()
        assert torch.isfinite(model(prompt(60), **given(cache)).logits).all()


@torch.no_grad()
def test_what_was_quantised_is_not_rolled_back():
    model = fresh_model("llama")
    cache = keyhole.KeyholeCache(model, "quantised(bits=4)")
    with keyhole.attach(model):
        model(prompt(130), **given(cache))
        hook = model.model.layers[1].mlp.register_forward_pre_hook(failed)
        with pytest.raises(OSError, match="No space"):
            model(prompt(70), **given(cache))
        hook.remove()
        with pytest.raises(keyhole.UnsupportedCacheError, match="start a new cache"):
            cache.roll_back()


@pytest.mark.parametrize("change", ["reorder_cache", "batch_repeat_interleave", "batch_select_indices"])
@torch.no_grad()
def test_rows_that_half_of_the_layers_took_are_refused(change, monkeypatch):
    """All layers are as long as before, but their rows are of different sequences."""
    model = fresh_model("llama")
    cache = keyhole.KeyholeCache(model, "dense")
    rows = 2 if change == "batch_repeat_interleave" else torch.tensor([1, 0])
    with keyhole.attach(model):
        model(prompt(60, rows=2), **given(cache))
        with monkeypatch.context() as patch:
            patch.setattr(keyhole.served_layers(cache)[1], "reorder", partial(raised, KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                getattr(cache, change)(rows)
        for call in (lambda: model(prompt(1, rows=2), **given(cache)), cache.roll_back):
            with pytest.raises(keyhole.UnsupportedCacheError, match="hold other rows"):
                call()


@pytest.mark.parametrize("method", ["dense", EVICTING[1]])
@torch.no_grad()
def test_a_first_prompt_that_broke_off_is_taken_back_by_any_method(method):
    model, cache, turn = broken(method, layer=0, error=failed, prompt_first=False)
    cache.roll_back()
    assert cache.get_seq_length() == 0
    with keyhole.attach(model):
        found = model(turn, **given(cache)).logits
    torch.testing.assert_close(found, model(turn).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_next"])
@torch.no_grad()
def test_layers_that_are_not_served_are_watched_too(family):
    """A sliding layer, or a linear one, is filled before the first that is served."""
    model = fresh_model(family)
    cache = keyhole.KeyholeCache(model, "dense")
    with keyhole.attach(model):
        model(prompt(60), **given(cache))
        hook = model.model.layers[1].register_forward_pre_hook(failed)
        with pytest.raises(OSError, match="No space"):
            model(prompt(1), **given(cache))
        hook.remove()
        if not cache.is_linear[0]:
            with pytest.raises(keyhole.UnsupportedCacheError, match="start a new cache"):
                model(prompt(1), **given(cache))
        cache.reset()
        assert cache.get_seq_length() == 0


@torch.no_grad()
def test_a_call_of_a_part_of_the_model_that_broke_off():
    model = fresh_model("llama")
    cache = keyhole.KeyholeCache(model, "dense")
    with keyhole.attach(model):
        model.model(prompt(60), **given(cache))
        hook = model.model.layers[1].self_attn.register_forward_pre_hook(failed)
        with pytest.raises(OSError, match="No space"):
            model.model(prompt(1), **given(cache))
        hook.remove()
        with pytest.raises(keyhole.UnsupportedCacheError, match=r"cache.roll_back\(\)"):
            model.model(prompt(1), **given(cache))
        cache.roll_back()
        model.model(prompt(1), **given(cache))
    assert [layer.length for layer in keyhole.served_layers(cache)] == [61, 61]


@torch.no_grad()
def test_values_that_are_not_finite_in_a_middle_layer():
    model = fresh_model("llama")
    weight = model.model.layers[1].self_attn.v_proj.weight
    good = weight.clone()
    with keyhole.attach(model, "dense") as attached:
        model(prompt(60))
        weight[0] = torch.nan
        with pytest.raises(keyhole.NonFiniteError):
            model(prompt(1), **given(attached.cache))
        weight.copy_(good)
        with pytest.raises(keyhole.UnsupportedCacheError, match="broke off"):
            model(prompt(1), **given(attached.cache))
        attached.cache.roll_back()
        model(prompt(1), **given(attached.cache))
        assert [layer.length for layer in attached.layers] == [61, 61]


def test_steps_of_fixed_size_that_broke_off_are_taken_back():
    model, ids = fresh_model("llama"), prompt(60)
    cache = keyhole.KeyholeCache(model, "dense")
    with torch.no_grad(), keyhole.attach(model):
        model(ids, **given(cache))
        with keyhole.captured(model, cache, new_tokens=3) as step:
            step(ids[:, :1])
            hook = model.model.layers[1].register_forward_pre_hook(failed)
            with pytest.raises(OSError, match="No space"):
                step(ids[:, :1])
            hook.remove()
        assert cache.get_seq_length() == 61
        model(prompt(1), **given(cache))


def test_a_half_filled_cache_is_not_saved(tmp_path):
    _, cache, _ = broken("dense", layer=0, error=failed)
    with pytest.raises(keyhole.UnsupportedCacheError, match="broke off"):
        cache.save(tmp_path / "kept")


class TestWhereACacheIsUsed:
    @pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_next"])
    def test_outside_a_block_it_is_refused_before_anything_is_done(self, family):
        model = tiny_model(family)
        with keyhole.attach(model, "dense") as attached:
            model.generate(prompt(40), max_new_tokens=3)
        for cache in (attached.cache, keyhole.KeyholeCache(model, "dense")):
            before = cache.get_seq_length()
            for call in (model, model.model):
                with pytest.raises(keyhole.UnsupportedCacheError, match=r"with keyhole.attach\(model\):"):
                    call(prompt(1), **given(cache))
            assert cache.get_seq_length() == before
            with keyhole.attach(model):
                model(prompt(1), **given(cache))

    def test_making_one_does_not_change_the_model(self):
        model = fresh_model("llama")
        keyhole.KeyholeCache(model, "dense")
        before = set(vars(model)), dict(vars(model.config))
        keyhole.KeyholeCache(model, "dense")
        assert (set(vars(model)), vars(model.config)) == before
        assert not model._forward_pre_hooks
        assert not model._forward_hooks

    def test_with_another_model_it_is_refused(self):
        model, other = fresh_model("llama"), fresh_model("llama")
        cache = keyhole.KeyholeCache(other, "dense")
        with (
            keyhole.attach(model, "dense"),
            pytest.raises(keyhole.UnsupportedCacheError, match="made for another LlamaForCausalLM"),
        ):
            model(prompt(40), **given(cache))

    def test_a_cache_that_a_block_started_knows_its_method(self):
        model = tiny_model("llama")
        with keyhole.attach(model, f"oracle({BUDGET})") as attached:
            model(prompt(40))
        assert isinstance(attached.cache, keyhole.KeyholeCache)
        assert attached.cache.method == attached.method
        assert attached.cache.model is model


@pytest.mark.parametrize("method", [*METHODS[:3], DISK, EVICTING[1]])
def test_a_copy_is_independent(method):
    model, ids = tiny_model("llama"), prompt(60)
    longer = torch.cat([ids, prompt(5, seed=1)], dim=1)
    with keyhole.attach(model, method) as attached:
        model(ids)
        cache = attached.cache
        first, second = (copy.deepcopy(cache) for _ in range(2))
        wanted = answer(model, longer, **given(first))
        assert_same(answer(model, longer, **given(second)), wanted)
        assert cache.get_seq_length() == 60
        assert_same(answer(model, longer, **given(cache)), wanted)


@pytest.mark.parametrize("method", ["dense", DISK])
def test_pickling_names_the_way_out(method):
    cache = keyhole.KeyholeCache(tiny_model("llama"), method)
    with pytest.raises(keyhole.UnsupportedCacheError, match=r"cache.save\(path\)"):
        pickle.dumps(cache)


def test_a_cache_whose_first_layer_was_filled_apart_is_rolled_back_to_nothing():
    cache = keyhole.KeyholeCache(tiny_model("llama"), "dense")
    tokens = torch.randn(1, 2, 5, 16)
    cache.layers[0].inner.append(tokens, tokens)
    cache.roll_back()
    assert [layer.get_seq_length() for layer in cache.layers] == [0, 0]
