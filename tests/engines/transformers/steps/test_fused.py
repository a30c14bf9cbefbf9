"""Steps by native code are the model's own steps, for every family that is understood."""

import gc
import logging
import threading
import weakref

import pytest
import torch

import keyhole
from keyhole.attention import Logits
from keyhole.engines.transformers.model import adapter_of
from keyhole.engines.transformers.packed.replace import pack_model
from keyhole.engines.transformers.steps import fused
from keyhole.engines.transformers.steps.fused import FusedSteps
from keyhole.kernels import native_available
from tests.engines.transformers.running import answer, assert_same, left_padded
from tests.tiny import fresh_model, prompt, tiny_model

pytestmark = pytest.mark.skipif(not native_available(), reason="no native library is built")

# Families, and what differs from the tiny model of that name.
UNDERSTOOD = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied, in odd sizes": (
        "llama",
        {"tie_word_embeddings": True, "hidden_size": 44, "intermediate_size": 77, "head_dim": 10},
    ),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "phi3": ("phi3", {"partial_rotary_factor": 0.5}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "attention_bias": True,
        },
    ),
    "olmo": ("olmo", {"clip_qkv": 0.4}),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {}),
}
PART = "oracle(budget=12, sinks=2, window=6)"


def model_of(name):
    family, changes = UNDERSTOOD[name]
    model = fresh_model(family, **changes)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases begin as ones and zeros
                parameter += torch.rand(parameter.shape) * (0.2 if "norm" in parameter_name else 0.05)
    return model


@pytest.fixture
def counted(monkeypatch):
    """Counts decode steps that native code computes."""
    counts = []
    run = FusedSteps._run

    def counting(*args):
        counts.append(1)
        return run(*args)

    monkeypatch.setattr(FusedSteps, "_run", counting)
    return counts


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_steps_are_the_models_own(name, counted):
    model, ids = model_of(name), prompt(40)
    wanted = answer(model, ids, steps=24)
    with keyhole.attach(model, "dense"):
        assert_same(answer(model, ids, steps=24), wanted)
    assert len(counted) == 23


@pytest.mark.parametrize("name", ["llama", "qwen3", "olmo2"])
@pytest.mark.parametrize("rows", [3, 16])
def test_batches_padded_on_the_left(name, rows, counted):
    model = model_of(name)
    ids, mask = left_padded(*(prompt(5 + 3 * row, seed=row) for row in range(rows)))
    wanted = answer(model, ids, mask=mask)
    with keyhole.attach(model, "dense"):
        assert_same(answer(model, ids, mask=mask), wanted)
    assert len(counted) == 5


def test_packed_weights_are_stepped(counted):
    model, ids = fresh_model("llama", hidden_size=64, intermediate_size=128, num_hidden_layers=8), prompt(40)
    pack_model(model, "int4")
    own = answer(model, ids, steps=2).logits[1]
    with keyhole.attach(model, "dense"):
        found = answer(model, ids, steps=2).logits[1]
    assert counted
    assert (found - own).norm() < 0.1 * own.norm()


def test_more_rows_than_native_code_takes(counted):
    model, ids = tiny_model("llama"), prompt(9, rows=17)
    wanted = answer(model, ids)
    with keyhole.attach(model, "dense"):
        assert_same(answer(model, ids), wanted)
    assert not counted


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_bfloat16_is_nearer_to_float64_than_the_models_own(name, counted):
    """Only what goes to attention and comes from it is rounded; over prompts, as one may go either way."""
    ours = own = 0.0
    for seed in range(6):
        model, ids = model_of(name).bfloat16(), prompt(40, seed=seed)
        modules = answer(model, ids, steps=2).logits[1].double()
        with keyhole.attach(model, "dense"):
            found = answer(model, ids, steps=2)
        exact = answer(model.double(), found.tokens[:, :-1], steps=1).logits[0]
        ours += float((found.logits[1].double() - exact).norm())
        own += float((modules - exact).norm())
    assert ours <= 1.2 * own
    assert len(counted) == 6


def test_a_step_answers_as_the_model_does(counted):
    model, ids = tiny_model("llama"), prompt(20)
    with keyhole.attach(model, PART) as attached, torch.no_grad():
        model(ids, use_cache=True)
        model(ids[:, :1], past_key_values=attached.cache)  # may end the prompt
        out = model(ids[:, :1], past_key_values=attached.cache)
        assert out.past_key_values is attached.cache
        assert out.logits.shape == (1, 1, model.config.vocab_size)
        assert attached.usage.read < attached.usage.tokens
    assert counted
    assert "forward" not in vars(model.model)
    assert "forward" not in vars(model.lm_head)


def own_step(model, ids, **options):
    """A step that the model's own modules have to compute, inside a block; the answer to it."""
    with keyhole.attach(model, "dense") as attached, torch.no_grad():
        model(ids, use_cache=True)
        return model(ids[:, :1], past_key_values=attached.cache, **options)


REASONS = {
    "hooks": lambda model: model.model.layers[1].mlp.register_forward_hook(lambda *_: None),
    "functions of a user's own": lambda model: setattr(
        model.model.layers[0].mlp, "forward", lambda x: torch.zeros_like(x)
    ),
    "parametrizations": lambda model: torch.nn.utils.parametrizations.weight_norm(
        model.model.layers[0].self_attn.o_proj
    ),
    "another activation": lambda model: setattr(model.model.layers[0].mlp, "act_fn", torch.nn.GELU()),
    "another module": lambda model: setattr(
        model.model.layers[0].self_attn, "q_proj", torch.nn.Sequential(model.model.layers[0].self_attn.q_proj)
    ),
    "float64": lambda model: model.double(),
    "transposed weights": lambda model: setattr(
        model.model.layers[0].mlp.up_proj.weight,
        "data",
        model.model.layers[0].mlp.up_proj.weight.data.T.contiguous().T,
    ),
}


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("when", ["before", "after the first step"])
def test_what_forbids_it(reason, when, counted, caplog):
    caplog.set_level(logging.INFO, logger="keyhole")
    model, ids = fresh_model("llama"), prompt(20)
    with keyhole.attach(model, "dense") as attached, torch.no_grad():
        if when == "before":
            REASONS[reason](model)
        model(ids, use_cache=True)
        if when != "before":
            model(ids[:, :1], past_key_values=attached.cache)
            REASONS[reason](model)
        steps, length = len(counted), attached.cache.get_seq_length()
        if reason == "float64":
            attached.cache.reset()
            model(ids, past_key_values=attached.cache)
        found = model(ids[:, 1:2], past_key_values=attached.cache).logits
        attached.cache.crop(-1)
        again = model.model(ids[:, 1:2], past_key_values=attached.cache).last_hidden_state
    assert length
    assert len(counted) == steps
    assert torch.allclose(found, model.lm_head(again), atol=1e-5)
    assert "are computed by its own modules" in caplog.text


def test_a_removed_hook_is_no_obstacle(counted):
    model, ids = fresh_model("llama"), prompt(20)
    hook = model.model.layers[0].register_forward_hook(lambda *_: None)
    with keyhole.attach(model, "dense") as attached, torch.no_grad():
        model(ids, use_cache=True)
        model(ids[:, :1], past_key_values=attached.cache)
        assert not counted
        hook.remove()
        model(ids[:, :1], past_key_values=attached.cache)
        assert counted


def test_an_adapter(counted):
    peft = pytest.importorskip("peft")
    model, ids = fresh_model("llama"), prompt(20)
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    wanted = answer(adapted, ids)
    with keyhole.attach(model, "dense"):
        assert_same(answer(adapted, ids), wanted)
    assert not counted


@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions"])
def test_outputs_that_only_modules_give(option, counted):
    out = own_step(tiny_model("llama"), prompt(20), **{option: True})
    assert option.removeprefix("output_") in out
    assert not counted


def test_training_and_gradients(counted):
    model, ids = fresh_model("llama"), prompt(20)
    own_step(model.train(), ids)
    with keyhole.attach(model.eval(), "dense") as attached:
        model(ids, use_cache=True)
        assert model(ids[:, :1], past_key_values=attached.cache).logits.requires_grad
    assert not counted


def test_weights_that_change_in_place_count(counted):
    model, ids = fresh_model("llama"), prompt(20)
    with keyhole.attach(model, "dense"):
        answer(model, ids)
        with torch.no_grad():
            for parameter in model.model.layers.parameters():
                parameter *= 0.5
        found = answer(model, ids)
    assert_same(found, answer(model, ids))
    assert counted


def test_packed_weights_that_are_replaced_count(counted):
    model = fresh_model("llama", hidden_size=64, intermediate_size=128)
    ids = prompt(40)
    pack_model(model, "int8")
    with keyhole.attach(model, "dense"):
        before = answer(model, ids, steps=2).logits[1]
        codes = model.model.layers[1].mlp.down_proj.codes
        model.model.layers[1].mlp.down_proj.codes = torch.zeros_like(codes)
        found = answer(model, ids, steps=2).logits[1]
        model.model.layers[1].mlp.down_proj.codes = codes
        again = answer(model, ids, steps=2).logits[1]
    assert len(counted) == 3
    assert (found - before).norm() > 0.1 * before.norm()
    torch.testing.assert_close(again, before)


@pytest.mark.parametrize("replaced", ["in place", "data", "parameter"])
def test_an_output_layer_that_changes_counts(replaced, counted):
    model, ids = fresh_model("llama"), prompt(20)
    with keyhole.attach(model, "dense"), torch.no_grad():
        answer(model, ids)
        halved = model.lm_head.weight * 0.5
        if replaced == "in place":
            model.lm_head.weight.copy_(halved)
        elif replaced == "data":
            model.lm_head.weight.data = halved
        else:
            model.lm_head.weight = torch.nn.Parameter(halved)
        found = answer(model, ids)
    assert_same(found, answer(model, ids))
    assert counted


def test_a_model_of_which_some_layers_slide(counted):
    kinds = ["sliding_attention", "full_attention"]
    own_step(fresh_model("qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=24), prompt(20))
    assert not counted


def test_chess_skips_by_modules(counted):
    model = fresh_model("llama")
    with keyhole.attach(model, "chess(sparsity=0.5)") as attached:
        answer(model, prompt(20))
    assert attached.activated.skipped
    assert not counted


def test_what_differs_from_the_modules_is_not_used(monkeypatch, counted, caplog):
    caplog.set_level(logging.INFO, logger="keyhole")
    model, ids = fresh_model("llama"), prompt(20)
    wanted = answer(model, ids)
    with keyhole.attach(model, "dense"):
        for layer in model.model.layers:
            monkeypatch.setattr(layer.self_attn, "scaling", 0.9)
        monkeypatch.setattr("keyhole.engines.transformers.steps.families.Logits", lambda _scale: Logits(0.25))
        answer(model, ids)
    assert not counted
    assert "hidden states differ" in caplog.text or "layer 1 differ" in caplog.text
    assert wanted is not None


def test_the_comparison_is_made_once(monkeypatch):
    calls = []
    differs = fused.differs
    monkeypatch.setattr(fused, "differs", lambda *args: calls.append(1) or differs(*args))
    model = fresh_model("llama")
    for _ in range(3):
        with keyhole.attach(model, "dense"):
            answer(model, prompt(20))
    assert len(calls) == 1


def test_threads_do_not_share_buffers():
    model = tiny_model("llama")
    texts = [prompt(30, seed=seed) for seed in range(4)]
    wanted = [answer(model, text, steps=20) for text in texts]
    found = {}

    def run(place):
        with keyhole.attach(model, "dense"):
            found[place] = answer(model, texts[place], steps=20)

    with keyhole.attach(model, "dense"):
        threads = [threading.Thread(target=run, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for place, own in enumerate(wanted):
        assert_same(found[place], own)


def test_a_model_is_freed():
    model = fresh_model("llama")
    with keyhole.attach(model, "dense"):
        answer(model, prompt(20))
    gone = weakref.ref(model)
    assert adapter_of(model)
    del model
    gc.collect()
    assert gone() is None
