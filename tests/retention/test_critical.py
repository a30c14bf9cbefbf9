"""CriticalKV's two stages around other scorers, against brute force."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from keyhole.attention import Logits
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import Recipe
from keyhole.retention.critical import projected_norms
from tests import oracles
from tests.evictions import Evicting
from tests.small import EVICTING, small

SPEC = "criticalkv(alpha={}) + {}"
SNAP = "snapkv(budget=20, sinks=2, window=6, kernel=1)"
WRAPPED = [name for name in EVICTING if Recipe.parse(name).layers(1)[0].retention.scorer.is_attention]


class Projected:
    """An output projection without a model."""

    def __init__(self, output):
        self._output = output

    def output(self):
        return self._output


def fed(spec, output=None, seed=0, batch=2, tokens=60):
    """A layer that was given a prompt, and what of it."""
    info = ModelInfo.of(1)
    if output is not None:
        info = replace(info, projections=lambda _: Projected(output))
    layer = Recipe.parse(spec).layers(info)[0]
    draw = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(batch, 2, tokens, 16, generator=draw) for _ in range(2))
    values *= torch.rand(batch, 2, tokens, 1, generator=draw) * 4
    query = 2 * torch.randn(batch, 4, tokens, 16, generator=draw)
    layer.append(keys, values)
    layer.attend(query, Logits(0.25))
    return layer, keys, values, query


def norms_of(values, output):
    """By the definition, `[N]`, of one KV head and the projections `[G, Dv, E]` of its query heads."""
    return np.mean([np.abs(values @ weights).sum(-1) for weights in output], axis=0)


def chosen(scores, norms, competing, count, alpha):
    """First the best by scores, then by scores times norms."""
    first = sorted(competing, key=lambda j: (-scores[j], j))[: int(alpha * count)]
    weighted = (scores / scores.sum() + 1e-4) * norms
    rest = sorted(set(competing) - set(first), key=lambda j: (-weighted[j], j))
    return first + rest[: count - len(first)]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_two_stages(alpha, seed):
    output = torch.randn(4, 16, 24, generator=torch.Generator().manual_seed(seed))
    layer, keys, values, query = fed(SPEC.format(alpha, SNAP), output, seed)
    for row in range(2):
        for head in range(2):
            group = slice(2 * head, 2 * head + 2)
            weights = np.zeros(60)
            for q in query[row, group].double().numpy():
                for at in range(54, 60):
                    logits = 0.25 * keys[row, head, : at + 1].double().numpy() @ q[at]
                    shares = np.exp(logits - logits.max())
                    weights[: at + 1] += shares / shares.sum()
            norms = norms_of(values[row, head].double().numpy(), output[group].double().numpy())
            best = chosen(weights, norms, range(2, 54), 12, alpha)
            expected = sorted([0, 1, *best, *range(54, 60)])
            assert layer.kept.positions[row, head].tolist() == expected


def test_alpha_of_one_is_the_method_itself():
    for other in WRAPPED:
        alone, wrapped = (
            fed(spec, torch.randn(4, 16, 8))[0]
            for spec in (str(small(other, 20)), f"criticalkv(alpha=1) + {small(other, 20)}")
        )
        assert torch.equal(alone.kept.positions, wrapped.kept.positions)


@pytest.mark.parametrize("other", WRAPPED)
def test_as_many_tokens_as_the_method_itself(other):
    alone, wrapped = (fed(spec)[0] for spec in (str(small(other, 20)), f"criticalkv + {small(other, 20)}"))
    for layer in (alone, wrapped):
        layer.prepare()
    assert torch.equal(alone.kept.filling, wrapped.kept.filling)
    assert not torch.equal(alone.kept.positions, wrapped.kept.positions)


@pytest.mark.parametrize("other", sorted(set(EVICTING) - set(WRAPPED)))
def test_what_is_no_attention_is_refused(other):
    with pytest.raises(SpecError, match="combine it with snapkv"):
        Recipe.parse(f"criticalkv + {other}").layers(1)
    with pytest.raises(SpecError, match="combine it with snapkv"):
        Recipe.parse("criticalkv + keyformer(freeze_keys=true)").layers(1)


@pytest.mark.parametrize("spec", ["criticalkv", "criticalkv + pqcache", "sale + criticalkv"])
def test_nothing_to_wrap(spec):
    with pytest.raises(SpecError, match=r"criticalkv \+ snapkv"):
        Recipe.parse(spec)


@pytest.mark.parametrize(
    "spec", ["h2o(budget=20, sinks=2, window=6)", "adakv(budget=20, sinks=2, window=6, every=3)"]
)
@pytest.mark.parametrize(
    "history",
    [
        [("step", 9), ("crop", 20), ("step", 5), ("prompt", 31), ("step", 9)],
        [("prompt", 100), ("reorder", [1, 1]), ("step", 9), ("restart", None), ("step", 9)],
        [("crop", 9), ("prompt", 2), ("step", 9), ("crop", 7), ("reorder", [1, 0]), ("step", 3)],
    ],
)
def test_any_history(spec, history):
    layer = Evicting(f"criticalkv + {spec}", batch=2, padding=[0, 5])
    layer.live(f"criticalkv + {spec}", history)
    norms = layer.cache.retention.scorer
    norms._update(layer.cache.storage)
    held, kept = norms._norms.view().squeeze(-1), layer.cache.kept.valid()
    expected = layer.cache.storage.values().abs().sum(-1)
    torch.testing.assert_close(held[kept], expected[kept])


def test_norms_do_not_depend_on_the_pieces(monkeypatch):
    values, output = torch.randn(2, 2, 33, 16), torch.randn(4, 16, 24)
    whole = projected_norms(values, output)
    monkeypatch.setattr("keyhole.retention.critical._PIECE", 4 * 24 * 2 * 5)
    torch.testing.assert_close(projected_norms(values, output), whole)
    for row in range(2):
        for head in range(2):
            own = oracles.array(values[row, head]), oracles.array(output[2 * head : 2 * head + 2])
            np.testing.assert_allclose(whole[row, head], norms_of(*own), rtol=1e-4)
