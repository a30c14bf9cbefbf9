"""TOVA: what the newest query attends to is kept, by all heads alike."""

from types import SimpleNamespace

import pytest
import torch

from keyhole import SpecError
from keyhole.methods import Tova
from keyhole.retention import LatestAttention
from tests.attention.test_columns import matrix
from tests.evictions import Evicting

SPEC = "tova(budget=20, sinks=2, window=6)"


def attention(layer, row, positions):
    """What the newest query of a row pays to tokens at `positions`, summed over the query heads."""
    total = 0
    for head in range(2):
        keys = layer.keys[row, head][positions].double().numpy()
        for query in layer.query[row, 2 * head : 2 * head + 2].double().numpy():
            total = total + matrix(query[-1:], keys, layer.logits.scale, None, None, 0)[0]
    return total


def best(layer, row, positions):
    """What is kept of `positions` by the rule of the paper."""
    worth = dict(zip(positions, attention(layer, row, positions), strict=True))
    chosen = sorted(positions[2:-6], key=lambda j: (-worth[j], j))[:12]
    return sorted([*positions[:2], *chosen, *positions[-6:]])


@pytest.mark.parametrize("seed", range(3))
def test_a_prompt_and_steps_by_the_rule_of_the_paper(seed):
    layer = Evicting(SPEC, seed=seed, batch=2, padding=[0, 9])
    layer.prompt(60)
    expected = [best(layer, row, list(range(start, 60))) for row, start in enumerate([0, 9])]
    assert layer.kept() == [[own, own] for own in expected]
    for _ in range(5):
        layer.step()
        newest = layer.length - 1
        expected = [best(layer, row, [*own, newest]) for row, own in enumerate(expected)]
        assert layer.kept() == [[own, own] for own in expected]


def test_heads_that_keep_different_tokens_are_refused():
    with pytest.raises(SpecError, match="heads=adaptive"):
        Tova(heads="adaptive")


def test_a_token_counts_for_the_heads_that_keep_it(monkeypatch):
    """A wrapper may have made heads keep different tokens, and fewer than others."""
    positions = torch.tensor([[[-1, 0, 3, 5], [0, 1, 3, 5]]], dtype=torch.int32)
    paid = torch.tensor([[[9.0, 1.0, 2.0, 3.0], [10.0, 20.0, 30.0, 40.0]]])
    monkeypatch.setattr(LatestAttention, "attention", lambda *_: paid)
    scores = LatestAttention().scores(None, SimpleNamespace(positions=positions, seen=6))
    assert scores[0, 0, 1:].tolist() == [11.0, 32.0, 43.0]
    assert scores[0, 1].tolist() == [11.0, 20.0, 32.0, 43.0]
