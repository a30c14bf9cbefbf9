"""Full budget is the model's own attention, token for token, over families of models."""

import pytest
import torch

import keyhole
from keyhole.engines.transformers.compat import returned_cache
from tests.engines.transformers.running import answer, assert_same, attention_of, given, left_padded
from tests.small import FULL_BUDGET, small
from tests.tiny import ALL_SLIDING, FAMILIES, fresh_model, prompt, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:no layer of this")
SERVED = [family for family in FAMILIES if family not in ALL_SLIDING]
SELECTED = [name for name in FULL_BUDGET if name.endswith("-selected")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", FULL_BUDGET)
def test_full_budget_is_the_models_own_attention(family, method):
    model, ids = tiny_model(family), prompt(110)
    before = attention_of(model)
    wanted = answer(model, ids)
    with keyhole.attach(model, FULL_BUDGET[method]) as attached:
        found = answer(model, ids)
    assert_same(found, wanted)
    assert attached.usage.read == attached.usage.tokens
    assert attention_of(model) == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", SELECTED)
def test_full_budget_with_padding_and_chunked_prefill(family, method):
    model = tiny_model(family)
    ids, mask = left_padded(prompt(120), prompt(75, seed=1), prompt(3, seed=2))
    wanted = answer(model, ids, mask=mask)
    with keyhole.attach(model, FULL_BUDGET[method]):
        assert_same(answer(model, ids, mask=mask), wanted)
        assert_same(answer(model, ids, mask=mask, prefill_chunk_size=32), wanted)


@pytest.mark.parametrize("family", SERVED)
def test_a_small_budget_reads_little_and_differs(family):
    """What makes the tests above mean something: attention is peaked enough that reading less shows."""
    model, ids = tiny_model(family), prompt(110)
    wanted = answer(model, ids)
    with keyhole.attach(model, small("oracle", 4)) as attached:
        found = answer(model, ids)
    assert attached.usage.read / attached.usage.tokens < 0.15
    assert (found.logits[1] - wanted.logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_serves_the_layers_that_see_everything(family):
    model = tiny_model(family)
    config = model.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    caching = config.num_hidden_layers - getattr(config, "num_kv_shared_layers", 0)
    cache = keyhole.make_cache(model, "dense")
    keyhole.detach(model)
    full = sum(kind in ("full_attention", "hybrid") for kind in kinds[:caching])
    wanted = 0 if family in ALL_SLIDING else full
    assert len(keyhole.served_layers(cache)) == wanted


@pytest.mark.parametrize("family", sorted(ALL_SLIDING))
def test_a_model_without_such_layers_is_left_alone(family):
    model = tiny_model(family)
    before = attention_of(model)
    with keyhole.attach(model, "oracle") as attached:
        assert attention_of(model) == before
        model.generate(prompt(40), max_new_tokens=2)
    assert attached.layers == []
    assert attached.usage.steps == 0
    with pytest.warns(UserWarning, match="no layer of this MistralForCausalLM .*; oracle changes nothing"):
        keyhole.make_cache(model, "oracle")
    assert attention_of(model) == before


@pytest.mark.parametrize("method", SELECTED)
def test_bfloat16_is_no_further_from_float32_than_the_models_own(method):
    exact, rounded = tiny_model("llama"), fresh_model("llama").to(torch.bfloat16)
    ids = prompt(110)
    with keyhole.attach(rounded, FULL_BUDGET[method]):
        found = forced(rounded, ids)
    own = (forced(rounded, ids) - forced(exact, ids)).abs()
    error = (found - forced(exact, ids)).abs()
    assert found.dtype == torch.bfloat16
    assert error.mean() < 1.2 * own.mean()
    assert error.max() < 2 * own.max()


def forced(model, ids, steps=8):
    """Logits of the last tokens, given one at a time, `[steps, vocabulary]`."""
    cache = None
    parts = [ids[:, :-steps], *ids[:, -steps:].split(1, dim=1)]
    logits = []
    with torch.no_grad():
        for part in parts:
            out = model(part, **given(cache), use_cache=True)
            cache = returned_cache(out)
            logits.append(out.logits[0, -1])
    return torch.stack(logits[1:])
