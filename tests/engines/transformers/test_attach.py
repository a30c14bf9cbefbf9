"""What `attach` touches, it puts back; and how calls of the model become Keyhole's."""

from contextlib import ExitStack
from threading import Barrier, Thread

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import keyhole
from keyhole.engines.transformers.compat import returned_cache
from tests.engines.transformers.running import answer, assert_same, attention_of, given
from tests.tiny import fresh_model, prompt, tiny_model

EVERYTHING = "oracle(mass=1.0, floor=1000000, sinks=2, window=6)"
PART = "oracle(budget=12, sinks=2, window=6)"


@pytest.fixture
def model():
    return fresh_model("llama")


def traces(model):
    """All that attaching could leave on a model."""
    hooks = {name: len(part._forward_pre_hooks) for name, part in model.named_modules()}
    return attention_of(model), hooks, set(vars(model)), set(vars(model.config))


def test_leaves_no_trace(model):
    before = traces(model)
    with keyhole.attach(model, PART):
        assert attention_of(model) == ["keyhole"]
        model.generate(prompt(60), max_new_tokens=3)
    assert traces(model) == before


def test_leaves_no_trace_after_an_error(model):
    before = traces(model)
    with pytest.raises(TypeError), keyhole.attach(model, PART):
        model.generate(prompt(60), max_new_tokens="many")
    assert traces(model) == before


def test_leaves_no_trace_when_the_method_cannot_be_read(model):
    before = traces(model)
    with pytest.raises(keyhole.SpecError, match="did you mean 'oracle'"), keyhole.attach(model, "oracel"):
        pass
    assert traces(model) == before


def test_a_cache_has_its_layers_made_once(model, monkeypatch):
    """What a method reads to make them, such as codebooks, is not read twice."""
    keyhole.make_cache(model, PART)
    made, layers = [], keyhole.Recipe.layers
    monkeypatch.setattr(keyhole.Recipe, "layers", lambda *given: made.append(given) or layers(*given))
    keyhole.make_cache(model, PART)
    assert len(made) == 1


def test_a_method_refused_by_make_cache_leaves_no_trace(model):
    before = traces(model)
    with pytest.raises(ValueError, match="no codebooks in"):
        keyhole.make_cache(model, 'a2ats(codebook="/nowhere")')
    assert traces(model) == before


def test_reports_the_latest_request(model):
    with keyhole.attach(model, PART) as attached:
        assert attached.layers == []
        assert attached.usage.steps == 0
        assert sum(attached.footprint) == 0
        model.generate(prompt(100), max_new_tokens=3)
        assert [layer.length for layer in attached.layers] == [102, 102]
        assert attached.usage.steps == 2 * 2
        model.generate(prompt(60), max_new_tokens=2)
        assert [layer.length for layer in attached.layers] == [61, 61]
    assert attached.usage.read < attached.usage.tokens
    assert attached.footprint.device >= 2 * 2 * 61 * 2 * 16 * 4
    assert "oracle" in str(attached.recipe)


def test_nested_blocks_count_from_the_inside(model):
    ids = prompt(100)
    with keyhole.attach(model, PART):
        outer = answer(model, ids)
    dense = answer(model, ids)
    with keyhole.attach(model, PART) as part:
        with keyhole.attach(model, EVERYTHING) as everything:
            assert_same(answer(model, ids), dense)
            assert everything.usage.read == everything.usage.tokens
        assert_same(answer(model, ids), outer)
        assert part.usage.read < part.usage.tokens
    assert_same(answer(model, ids), dense)
    assert attention_of(model) == ["sdpa"]


def test_blocks_that_end_in_another_order(model):
    first, second = ExitStack(), ExitStack()
    first.enter_context(keyhole.attach(model, PART))
    second.enter_context(keyhole.attach(model, EVERYTHING))
    first.close()
    answer(model, prompt(60))
    second.close()
    assert attention_of(model) == ["sdpa"]


def test_models_that_share_a_configuration(model):
    other = type(model)(model.config).eval()
    wanted = answer(other, prompt(60))
    with ExitStack() as inner:
        with keyhole.attach(model, PART):
            assert_same(answer(other, prompt(60)), wanted)
            inner.enter_context(keyhole.attach(other, EVERYTHING))
        assert_same(answer(other, prompt(60)), wanted)
    assert attention_of(model) == attention_of(other) == ["sdpa"]


def test_two_models_in_two_threads():
    ids = prompt(90)
    models = fresh_model("llama"), fresh_model("gemma3")
    methods = PART, EVERYTHING
    wanted, found = [], [None, None]
    for model, method in zip(models, methods, strict=True):
        with keyhole.attach(model, method):
            wanted.append(answer(model, ids))
    together = Barrier(2, timeout=60)

    def work(i):
        with keyhole.attach(models[i], methods[i]):
            together.wait()
            found[i] = answer(models[i], ids)
            together.wait()

    threads = [Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answered, want in zip(found, wanted, strict=True):
        assert_same(answered, want)
    assert [attention_of(model) for model in models] == [["sdpa"], ["sdpa"]]


@torch.no_grad()
def test_arguments_by_position(model):
    ids = prompt(50)
    wanted = model(ids).logits
    with keyhole.attach(model, EVERYTHING) as attached:
        torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-4, atol=1e-4)
        out = model(ids[:, :40], torch.ones(1, 40, dtype=torch.long))
        assert returned_cache(out) is attached.cache
        rest = model(ids[:, 40:], torch.ones(1, 50, dtype=torch.long), None, returned_cache(out))
        assert attached.layers[0].length == 50
    torch.testing.assert_close(rest.logits, wanted[:, 40:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("where", ["call", "configuration"])
def test_without_a_cache_nothing_is_kept(model, where):
    ids = prompt(50)
    wanted = model(ids).logits
    model.config.use_cache = where == "call"
    options = {"use_cache": False} if where == "call" else {}
    with keyhole.attach(model, PART) as attached:
        out = model(ids, **options)
        answered = model.generate(ids, max_new_tokens=3, do_sample=False, use_cache=False)
    assert returned_cache(out) is None
    assert attached.cache is None
    assert answered.shape == (1, 53)
    torch.testing.assert_close(out.logits, wanted, rtol=1e-4, atol=1e-4)


def gradients(model, **options):
    model.zero_grad()
    model(prompt(40), **options).logits.logsumexp(-1).mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_gradients_are_right_or_refused(model):
    """Cached keys have no history: a gradient through them would silently lack their part."""
    wanted = gradients(model)
    with keyhole.attach(model, PART):
        for found, want in zip(gradients(model, use_cache=False), wanted, strict=True):
            torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)
        with pytest.raises(ValueError, match="train with use_cache=False"):
            gradients(model)


def test_decode_steps_refuse_gradients_too(model):
    with keyhole.attach(model, PART) as attached:
        model(prompt(60))
        out = model(prompt(1), **given(attached.cache))
    with pytest.raises(ValueError, match="gradients do not flow"):
        out.logits.sum().backward()


def test_the_text_part_of_a_model_that_sees():
    model = tiny_llava()
    model.model.vision_tower.set_attn_implementation("eager")
    ids = torch.cat([prompt(30), torch.full((1, 4), model.config.image_token_id), prompt(70, seed=1)], dim=1)
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = attention_of(model)
    wanted = answer(model, ids, pixel_values=image)
    with keyhole.attach(model, EVERYTHING) as attached:
        assert_same(answer(model, ids, pixel_values=image), wanted)
        assert attention_of(model).count("keyhole") == 1
        assert model.config.vision_config._attn_implementation == "eager"
    assert attached.usage.read == attached.usage.tokens > 0
    assert attention_of(model) == before


def tiny_llava():
    text = tiny_model("llama").config.to_dict() | {"vocab_size": 101}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision = CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=16, **sizes)
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**text), image_token_id=100)
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).eval()
