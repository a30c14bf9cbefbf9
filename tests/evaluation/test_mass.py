"""Exact mass against the softmax written out."""

import numpy as np
import pytest
import torch

import keyhole
from keyhole.attention import Logits, Part
from keyhole.cache.base import Observation
from keyhole.cache.decode_step import Read
from keyhole.core.layout import regions
from keyhole.evaluation.mass import MassMeter, exact
from keyhole.selection import Selection
from tests import oracles
from tests.layers import Layer
from tests.small import small
from tests.steps import stored
from tests.tiny import prompt, tiny_model

BATCH, KV_HEADS, GROUP, SIZE = 2, 2, 3, 8


def observation(tokens, padding, softcap):
    """A random query, of which the tokens drawn in `chosen [B, Hkv, N]` are read."""
    torch.manual_seed(tokens)
    logits = Logits(0.5, softcap)
    query = torch.randn(BATCH, KV_HEADS * GROUP, SIZE)
    keys = torch.randn(BATCH, KV_HEADS, tokens, SIZE)
    scores = torch.einsum("bhgd,bhnd->bhgn", query.unflatten(1, (KV_HEADS, GROUP)), keys) * logits.scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    real = torch.arange(tokens) >= torch.tensor(padding).view(-1, 1, 1)
    chosen = (torch.rand(BATCH, KV_HEADS, tokens) < 0.3) & real
    chosen[..., -1] = True
    shares = scores.masked_fill(~real.unsqueeze(2), -torch.inf).softmax(-1)
    expected = (shares * chosen.unsqueeze(2)).sum(-1).mean(-1)
    lse = scores.masked_fill(~chosen.unsqueeze(2), -torch.inf).logsumexp(-1).flatten(1)
    none = torch.zeros(BATCH, KV_HEADS, 1)
    read = Read(
        Part(query, lse),
        Selection(none.int(), none[..., 0].int(), none[..., 0]),
        regions(tokens, padding, 0, 1, torch.device("cpu")),
        0,
    )
    return Observation(query, stored(keys), read, logits), expected


@pytest.mark.parametrize("tokens", [1, 31, 63, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_share_of_the_softmax(tokens, softcap):
    seen, expected = observation(tokens, (0, min(20, tokens - 1)), softcap)
    torch.testing.assert_close(exact(seen).mass, expected)


@pytest.mark.parametrize("padding", [None, [0, 30]])
@pytest.mark.parametrize("spec", ["oracle(budget=0.2)", "pqcache(budget=0.2, subspaces=2, bits=3)"])
def test_recall_of_the_exact_best(spec, padding):
    layer = Layer(spec, batch=2, size=8, padding=padding)
    layer.append(200)
    layer.step()
    seen = layer.observed
    recall, parts, selection = exact(seen).recall, seen.read.regions, seen.read.selection
    for row in range(2):
        logits = oracles.exact_logits(
            oracles.array(layer.query[row, :, 0]), oracles.array(layer.keys[row]), scale=layer.logits.scale
        )
        logits = logits[:, layer.starts[row] :]
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        for head in range(2):
            shares = weights[2 * head : 2 * head + 2].mean(0)
            offset = int(parts.first[row]) - layer.starts[row]
            competing = shares[offset : parts.last - layer.starts[row]]
            count = int(selection.counts[row, head])
            best = set(np.argsort(-competing, kind="stable")[:count] + int(parts.first[row]))
            picked = set(selection.slots[row, head, :count].tolist())
            assert float(recall[row, head]) == pytest.approx(len(best & picked) / count)
    assert spec.startswith("pqcache") or float(recall.min()) == 1


def run(method, tokens=80, target=None):
    model = tiny_model("llama")
    cache = keyhole.make_cache(model, method)
    meter = MassMeter(keyhole.served_layers(cache), target)
    with torch.no_grad():
        ids = prompt(tokens)
        model(ids[:, :-1], past_key_values=cache)
        for _ in range(3):
            model(ids[:, -1:], past_key_values=cache)
            meter.settle()
    keyhole.detach(model)
    return meter.tally, keyhole.usage(cache)


def test_reading_everything_by_selection_has_mass_one():
    tally, _ = run(small("oracle", "mass=1.0"), target=1.0)
    assert tally.mass / tally.cases == pytest.approx(1.0, abs=1e-5)
    assert tally.reached == tally.cases == 6


def test_reading_everything_densely_has_mass_one():
    tally, _ = run("dense", target=0.95)
    assert tally.mass == tally.reached == tally.cases == 6


def test_the_oracle_estimates_exactly():
    tally, usage = run(small("oracle", 10))
    assert 0 < tally.mass / tally.cases < 1
    assert tally.mass / tally.cases == pytest.approx(usage.mass / usage.steps, abs=1e-5)


def test_the_oracle_reaches_its_target():
    tally, _ = run(small("oracle", "mass=0.8"), target=0.8)
    assert tally.reached == tally.cases


def test_a_target_out_of_reach_is_not_reached():
    tally, _ = run(small("oracle", 4), target=0.999)
    assert tally.reached < tally.cases
