"""A budget that continues a copy of a method's index reads as one with an index of its own."""

import pytest
import torch

import keyhole
from keyhole.core.budget import Budget
from keyhole.evaluation.candidates import candidates
from keyhole.evaluation.prompts import Prompt
from keyhole.evaluation.starts import Starts
from keyhole.generation.decoding import decode
from tests.small import BY_MASS, EVICTING, SELECTIVE, small
from tests.tiny import prompt, tiny_model

TOKENS = 16


def at_budgets(name):
    budgets = [Budget(tokens=8), Budget(tokens=20)]
    budgets += [Budget(mass=0.8)] if name in BY_MASS else []
    return candidates([small(name)], [*budgets, Budget(tokens=8)])[1:]


def continued(model, last, begun):
    answer = [token.id for token in decode(model, last, begun.cache, limit=TOKENS)]
    return answer, keyhole.usage(begun.cache), keyhole.footprint(begun.cache)


@pytest.mark.parametrize("name", SELECTIVE)
def test_one_index_serves_all_budgets(name):
    model, tokens = tiny_model("llama"), prompt(120, rows=2)
    shared = Prompt(model, tokens)
    starts = Starts(shared)
    try:
        for candidate in at_budgets(name):
            with starts.begin(candidate) as begun:
                reused = continued(model, shared.last, begun)
            assert reused == continued(model, shared.last, shared.start(candidate.recipe))
    finally:
        keyhole.detach(model)


@pytest.mark.parametrize("method", ["pqcache", "shadowkv", "tokenselect"])
def test_the_index_is_built_once(monkeypatch, method):
    model, made = tiny_model("llama"), []
    shared = Prompt(model, prompt(60))
    start = Prompt.start
    monkeypatch.setattr(Prompt, "start", lambda self, recipe: made.append(recipe) or start(self, recipe))
    starts = Starts(shared)
    for candidate in at_budgets(method):
        with starts.begin(candidate):
            pass
    keyhole.detach(model)
    assert len(made) == 1


@pytest.mark.parametrize("method", ["tokenselect(renumber=true, sinks=2, window=6)", small("snapkv")])
def test_what_is_held_for_a_budget_is_made_anew(monkeypatch, method):
    model, made = tiny_model("llama"), []
    shared = Prompt(model, prompt(60))
    start = Prompt.start
    monkeypatch.setattr(Prompt, "start", lambda self, recipe: made.append(recipe) or start(self, recipe))
    starts = Starts(shared)
    chosen = candidates([method], [8, 20])[1:]
    for candidate in chosen:
        with starts.begin(candidate):
            pass
    keyhole.detach(model)
    assert made == [candidate.recipe for candidate in chosen]


@pytest.mark.parametrize("name", ["oracle", "pqcache", *EVICTING])
def test_rows_of_a_batch_start_as_alone(name):
    """Keys that are held of a row do not depend on the rows beside it."""
    model, tokens = tiny_model("llama"), prompt(120, rows=3)
    (candidate,) = candidates([small(name)], [20])[1:]
    together = Prompt(model, tokens).start(candidate.recipe)
    for row in range(3):
        alone = Prompt(model, tokens[row : row + 1]).start(candidate.recipe)
        for many, one in zip(*map(keyhole.served_layers, (together.cache, alone.cache)), strict=True):
            assert many.length == one.length
            expected = one.storage.keys()[0]
            found = many.storage.keys()[row, :, -expected.shape[1] :]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    keyhole.detach(model)
