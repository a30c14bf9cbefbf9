"""Exact errors against attention written out."""

import numpy as np
import pytest
import torch

import keyhole
from keyhole.engines.transformers.cache import end_prompt
from keyhole.evaluation.mass import MassMeter, exact
from keyhole.evaluation.output_error import ErrorTally, exact_error
from tests import oracles
from tests.layers import Layer, slots_read
from tests.small import small
from tests.tiny import prompt, tiny_model


@pytest.mark.parametrize("padding", [None, [0, 30]])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -1.0, 2.0, 0.0])])
def test_relative_length_of_what_is_missed(padding, softcap, sinks):
    layer = Layer("oracle(budget=20)", batch=2, padding=padding, softcap=softcap, sink_logits=sinks)
    layer.append(200)
    layer.append(1)
    out = layer.attend()[:, :, 0]
    dense = layer.dense()[:, :, 0]
    expected = np.linalg.norm(oracles.array(out) - dense, axis=-1) / np.linalg.norm(dense, axis=-1)
    np.testing.assert_allclose(exact_error(layer.observed), expected, rtol=1e-3, atol=1e-5)


def test_hidden_tokens_are_no_part_of_it():
    layer = Layer("oracle(mass=1.0, floor=1000)")
    layer.append(100)
    mask = torch.ones(1, 1, 1, 100, dtype=torch.bool)
    mask[..., 30:40] = False
    layer.cache.request.prompt_length = 99
    layer.cache.attend(layer.draw(1, 4, 1, 16), layer.logits, mask=mask)
    assert float(exact_error(layer.observed).max()) < 1e-5


def test_mass_is_that_of_what_was_read():
    """The estimate of the rest is no part of it."""
    layer = Layer("oracle(error=0.3, sinks=2, window=6)")
    layer.append(300)
    layer.append(1)
    layer.attend()
    read, found = slots_read(layer), exact(layer.observed).mass
    logits = layer.observed.storage.scores(layer.observed.query, layer.logits).softmax(-1)
    for head in range(2):
        expected = logits[0, head][:, read[0][head]].sum(-1).mean()
        assert float(found[0, head]) == pytest.approx(float(expected), abs=1e-4)
        assert float(layer.observed.read.selection.mass[0, head]) == pytest.approx(float(expected), abs=0.2)


def test_tallies():
    tally = ErrorTally(0.1)
    tally.add(torch.tensor([[0.05, 0.1, 0.2, 0.3]]))
    tally.add_whole(1)
    assert (tally.cases, tally.kept) == (2, 1.5)
    assert tally.error == pytest.approx(0.1625)


def test_a_meter_measures_a_request():
    model = tiny_model("llama")
    cache = keyhole.make_cache(model, small("oracle", "error=0.5"))
    meter = MassMeter(keyhole.served_layers(cache), error=0.5)
    with torch.no_grad():
        ids = prompt(120)
        model(ids[:, :-1], past_key_values=cache)
        end_prompt(cache)
        for _ in range(3):
            model(ids[:, -1:], past_key_values=cache)
            meter.settle()
    keyhole.detach(model)
    assert meter.errors.cases == 6
    assert 0.9 * 6 <= meter.errors.kept <= 6
    assert 0 < keyhole.usage(cache).mean_error <= 0.5
    assert MassMeter([]).errors is None
