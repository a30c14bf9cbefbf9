"""A budget that continues a copy of a method's index reads as one with an index of its own."""

import pytest
import torch

import keyhole
from keyhole.core.budget import Budget
from keyhole.evaluation.candidates import candidates
from keyhole.evaluation.divergence.forced import predict
from keyhole.evaluation.prompts import Prompt
from keyhole.evaluation.starts import Starts
from tests.small import BY_MASS, EVICTING, SELECTIVE, small
from tests.tiny import prompt, tiny_model

CONTEXT, TOKENS = 120, 16


def at_budgets(name):
    budgets = [Budget(tokens=8), Budget(tokens=20)]
    budgets += [Budget(mass=0.8)] if name in BY_MASS else []
    return candidates([small(name)], [*budgets, Budget(tokens=8)])[1:]


def continued(model, tokens, begun):
    """Log-probabilities `[N, B, V]` of the tokens behind the prompt, what was read, and what is held."""
    logs = torch.stack([each.logs for each in predict(model, tokens, begun.cache, CONTEXT)])
    return logs, keyhole.usage(begun.cache), keyhole.footprint(begun.cache)


@pytest.mark.parametrize("name", SELECTIVE)
def test_one_index_serves_all_budgets(name):
    model, tokens = tiny_model("llama"), prompt(CONTEXT + TOKENS, rows=2)
    shared = Prompt(model, tokens[:, :CONTEXT])
    starts = Starts(shared)
    try:
        for candidate in at_budgets(name):
            with starts.begin(candidate) as begun:
                logs, *counted = continued(model, tokens, begun)
            own, *expected = continued(model, tokens, shared.start(candidate.recipe))
            assert torch.equal(logs, own)
            assert counted == expected
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
def test_rows_of_a_batch_go_on_as_alone(name):
    model, tokens = tiny_model("llama"), prompt(CONTEXT + TOKENS, rows=3)
    (candidate,) = candidates([small(name)], [20])[1:]

    def logs(rows):
        return continued(model, rows, Prompt(model, rows[:, :CONTEXT]).start(candidate.recipe))[0]

    together = logs(tokens)
    for row in range(3):
        torch.testing.assert_close(
            together[:, row : row + 1], logs(tokens[row : row + 1]), rtol=1e-3, atol=1e-3
        )
    keyhole.detach(model)
