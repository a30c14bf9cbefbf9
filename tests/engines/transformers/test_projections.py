"""What parts of a layer may ask of the model: its projections, hidden states and all queries of a prompt."""

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import keyhole
from keyhole.core.errors import UnsupportedModelError
from keyhole.core.needs import Needs
from keyhole.engines.transformers.cache import setting_of
from keyhole.engines.transformers.projections import attention_module
from keyhole.methods import EvictionMethod, Quest, Recipe
from keyhole.retention import Recency
from keyhole.selection import BoxSelector
from tests import tiny
from tests.engines.transformers.running import given

QUERIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "gpt_oss", "granite", "olmo2", "mistral"]
SPEC = "expectedattention(budget=30, sinks=2, window=6, prompt=whole, statistics={})"


class Curious(Recency):
    """Notes the hidden states that it is shown, and the queries that follow."""

    needs = Needs.HIDDEN_STATES | Needs.ALL_QUERIES

    def __init__(self):
        self.hidden, self.queries = [], []

    def see_hidden_states(self, hidden):
        self.hidden.append(hidden)

    def see_queries(self, queries, storage):
        assert storage.length >= queries.shape[2]
        self.queries.append(queries)


@dataclass(frozen=True)
class Asking(EvictionMethod):
    name: ClassVar[str] = "asking"

    def scorer(self, info, place):  # noqa: ARG002
        return Curious()


def hooks(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("family", QUERIES)
def test_projected_hidden_states_are_the_queries(family):
    model, ids = tiny.fresh_model(family), tiny.prompt(70)
    info = setting_of(model)
    with keyhole.attach(model, Asking(budget=0.5, window=6, prompt="whole")) as attached, torch.no_grad():
        model(ids)
    for layer, place in zip(attached.layers, info.layers, strict=True):
        scorer = layer.retention.scorer
        (hidden,), (queries,) = scorer.hidden, scorer.queries
        projected = info.projections(place).queries(hidden).float()
        turned = info.rope(place).rotate(projected, torch.arange(70).view(1, -1))
        torch.testing.assert_close(turned, queries.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [*QUERIES, "phi3"])
def test_the_output_projection_is_by_head(family):
    model = tiny.fresh_model(family)
    info = setting_of(model)
    for place in info.layers:
        module = attention_module(model, place)
        weights = info.projections(place).output()
        heads = torch.randn(1, 3, weights.shape[0], weights.shape[1])
        expected = heads.flatten(2) @ module.o_proj.weight.T
        torch.testing.assert_close(torch.einsum("bthd,hde->bte", heads, weights), expected)


def test_queries_that_are_made_in_one_with_keys_are_refused():
    model = tiny.fresh_model("phi3")
    with (
        pytest.raises(UnsupportedModelError, match="does not make its queries by one linear projection"),
        keyhole.attach(model, SPEC.format("hidden_states")),
        torch.no_grad(),
    ):
        model(tiny.prompt(50))
    with keyhole.attach(model, SPEC.format("queries")), torch.no_grad():
        model(tiny.prompt(50))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_oss"])
def test_hidden_states_and_queries_have_the_same_statistics(family):
    model, ids = tiny.fresh_model(family), tiny.prompt(90, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :17] = 0
    kept = []
    for statistics in ("queries", "hidden_states"):
        with keyhole.attach(model, SPEC.format(statistics)) as attached:
            model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0)
            kept.append([layer.retention.scorer._statistics for layer in attached.layers])
    for one, other in zip(*kept, strict=True):
        assert torch.equal(one.count, other.count)
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(one.scatter, other.scatter, rtol=1e-3, atol=1e-1)


def test_requests_do_not_mix_and_nothing_stays_behind():
    model = tiny.fresh_model("llama")
    before, method = hooks(model), Asking(budget=0.5, window=6, prompt="whole")
    prompts = [tiny.prompt(60), tiny.prompt(80)]
    with keyhole.attach(model, method), torch.no_grad():
        caches = [model(ids[:, :40]).past_key_values for ids in prompts]
        copied = deepcopy(caches[0])
        for ids, cache in zip(prompts, caches, strict=True):
            model(ids[:, 40:], past_key_values=cache)
        model(prompts[0][:, 40:50], past_key_values=copied)
        lengths = [[h.shape[1] for h in cache.layers[0].inner.retention.scorer.hidden] for cache in caches]
        assert lengths == [[40, 20], [40, 40]]
        assert [h.shape[1] for h in copied.layers[0].inner.retention.scorer.hidden] == [40, 10]
        assert hooks(model) == before + 2 + 1  # one for each layer, and that of attach
    assert hooks(model) == before


@torch.no_grad()
def test_making_a_cache_that_asks_puts_nothing_on_the_model():
    model, ids = tiny.fresh_model("llama"), tiny.prompt(60)
    before = hooks(model)
    cache = keyhole.KeyholeCache(model, SPEC.format("hidden_states"))
    assert hooks(model) == before
    with keyhole.attach(model):
        assert hooks(model) == before + 1
        model.model(ids, **given(cache))  # a part of the model, of which nobody says that it is called
        assert hooks(model) == before + 2 + 1
    assert hooks(model) == before
    with keyhole.attach(model):
        model(tiny.prompt(20, seed=1), **given(cache))


@pytest.mark.parametrize("method", ["dense", "snapkv(budget=30)", "pqcache", "criticalkv + snapkv", "infllm"])
def test_nobody_asks_and_nothing_is_recorded(method):
    model = tiny.fresh_model("llama")
    before = hooks(model)
    with keyhole.attach(model, method), torch.no_grad():
        model(tiny.prompt(40))
        assert hooks(model) == before + 1


def test_a_selector_gets_all_queries_only_where_it_asks(monkeypatch):
    shown = []
    monkeypatch.setattr(BoxSelector, "see_queries", lambda _, queries, __: shown.append(queries.shape[2]))
    layer = Recipe((Quest(),)).layers(1)[0]
    for needs in (Needs.NOTHING, Needs.ALL_QUERIES):
        monkeypatch.setattr(BoxSelector, "needs", needs)
        layer.append(torch.randn(1, 2, 100, 16), torch.randn(1, 2, 100, 16))
        layer.attend(torch.randn(1, 4, 100, 16), keyhole.attention.Logits(0.25))
    assert shown == [100]


@pytest.mark.parametrize(
    "method",
    [
        "criticalkv + snapkv(budget=30, sinks=2, window=6)",
        "criticalkv + h2o(budget=30, sinks=2, window=6)",
        "criticalkv + snapkv(budget=30, sinks=2, window=6) + chess(sparsity=0.3)",
        SPEC.format("hidden_states"),
        "criticalkv + " + SPEC.format("queries"),
        "knorm(budget=30, sinks=2, window=6)",
        "infllm(budget=30, sinks=2, window=6, block=8, dense_below=0)",
        "snapkv(budget=30, sinks=2, window=6) + quantised(bits=4)",
        "quantised(bits=4) + infllm(budget=30, sinks=2, window=6, block=8, dense_below=0)",
    ],
)
@pytest.mark.parametrize("family", ["llama", "gpt_oss", "gemma2"])
def test_models_generate(method, family):
    if family == "gpt_oss" and "chess" in method:
        pytest.skip("chess does not know its experts")
    model = tiny.fresh_model(family)
    ids = tiny.prompt(120)
    with keyhole.attach(model, method) as attached:
        out = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, prefill_chunk_size=50)
    assert out.shape[1] == 132
    assert attached.usage.steps
    assert attached.usage.tokens > attached.usage.read or "quantised" in method
