"""Tokens sampled by hashing, and their weights, against the formulae of MagicPIG."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.methods import Recipe
from keyhole.selection import HashSelector, hashed
from tests import oracles
from tests.steps import competing, make_step

ALL = Budget(tokens=1000)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def asked(query, heads):
    """query [Q, D] -> [H, D]: the mean of the directions of each group's queries."""
    return np.stack(
        [(own / np.linalg.norm(own, axis=1, keepdims=True)).mean(0) for own in np.split(query, heads)]
    )


def second_table(query, points, planes, bits, tables):
    """query [D], points [N, D], planes [D, L * K] -> where each shares the second bucket: a table, or L."""
    found = []
    for point in points:
        shared = 0
        for table in range(tables):
            own = planes[:, table * bits : (table + 1) * bits]
            shared += bool(((point @ own > 0) == (query @ own > 0)).all())
            if shared == 2:
                break
        found.append(table if shared == 2 else tables)
    return found


def probability(query, point, bits, tables):
    """Of two buckets or more in common."""
    cosine = query @ point / np.linalg.norm(query) / np.linalg.norm(point)
    u = (1 - math.acos(cosine) / math.pi) ** bits
    return 1 - (1 - u) ** tables - tables * u * (1 - u) ** (tables - 1)


def built(keys, first, *, bits=2, tables=9, cut=None):
    selector = HashSelector(bits, tables)
    cut = cut or keys.shape[2]
    selector.build(keys[:, :, :cut], competing(first, cut, cut))
    selector.append(keys[:, :, cut:])
    return selector


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([13, 31, 63]), st.integers(1, 3), st.integers(1, 40), st.integers(1, 4),
    st.sampled_from([2, 5, 12]), st.data(),
)  # fmt: skip
def test_samples_and_weights(tokens, group, budget, bits, tables, data):
    first = [data.draw(st.integers(0, tokens - 4)) for _ in range(2)]
    last = data.draw(st.integers(max(first) + 1, tokens))
    cut = data.draw(st.integers(max(first) + 2, tokens))
    keys, query = draw(2, 2, tokens, 8, seed=tokens) + 0.5, draw(2, 2 * group, 8, seed=budget)
    anchor = draw(2, 2 * group, seed=1)
    selector = built(keys, first, bits=bits, tables=tables, cut=cut)
    step = make_step(query, keys, first, last, anchor, Budget(tokens=budget))
    selection = selector.select(step)
    rest = selector.rest(step, selection)
    planes = oracles.array(hashed._planes(8, bits * tables, torch.device("cpu")))
    values = oracles.array(step.storage.values())
    for row in range(2):
        own = asked(oracles.array(query[row]), 2)
        for head in range(2):
            vectors = oracles.array(keys[row, head])
            points = vectors - vectors[first[row] : cut].mean(0)
            middle = list(range(first[row], last))
            tables_of = second_table(own[head], points[middle], planes, bits, tables)
            order = sorted((table, n) for table, n in zip(tables_of, middle, strict=True) if table < tables)
            whole = len(middle) <= budget
            wanted = middle if whole else sorted(n for _, n in order[:budget])
            found = selection.slots[row, head, : selection.counts[row, head]].tolist()
            assert found == wanted
            looked = tables if len(order) < budget else order[budget - 1][0] + 1
            chances = np.array([probability(own[head], points[n], bits, looked) for n in wanted])
            weights = 1 / np.minimum(chances + 1e-4 + whole, 1)
            held = []
            for at in range(head * group, (head + 1) * group):
                logits = 8**-0.5 * vectors[wanted] @ oracles.array(query[row, at])
                more = (weights - 1) * np.exp(logits)
                always = math.exp(float(anchor[row, at]))
                held.append((always + np.exp(logits).sum()) / (always + (weights * np.exp(logits)).sum()))
                if more.sum() < 1e-9:
                    continue
                assert float(rest.lse[row, at]) == pytest.approx(math.log(more.sum()), abs=1e-2)
                expected = more @ values[row, head][wanted] / more.sum()
                np.testing.assert_allclose(rest.out[row, at], expected, rtol=1e-2, atol=1e-3)
            assert float(selection.mass[row, head]) == pytest.approx(np.mean(held), abs=1e-3)


def test_probabilities_are_how_often_tokens_are_found(monkeypatch):
    """Whatever the planes; the sum of weights is unbiased then, too."""
    keys, query = draw(1, 1, 300, 8), draw(1, 1, 8, seed=1)
    seen, counts, sums = torch.zeros(300), [], []
    logits = 8**-0.5 * keys[0, 0] @ query[0, 0]
    for seed in range(300):
        monkeypatch.setattr(hashed, "_planes", lambda size, count, _, s=seed: draw(size, count, seed=s))
        selector = built(keys, [0], bits=3, tables=10)
        step = make_step(query, keys, [0], 300, torch.full((1, 1), -30.0), Budget(tokens=299))
        selection = selector.select(step)
        slots = selection.slots[0, 0, : selection.counts[0, 0]].long()
        seen[slots] += 1 / 300
        counts.append(len(slots))
        more = selector.rest(step, selection).lse[0, 0].exp()
        sums.append(float(logits[slots].exp().sum() + more))
    chances = selector._log_probabilities(keys)[0, 0].exp()
    assert float((seen - chances).abs().mean()) < 0.03
    for found, expected in ((counts, float(chances.sum())), (sums, float(logits.exp().sum()))):
        error = np.std(found) / len(found) ** 0.5
        assert abs(np.mean(found) - expected) < 4 * error < 0.2 * expected


def test_nothing_found_is_nothing_to_estimate():
    keys = draw(1, 1, 40, 8)
    query = -10 * (keys[:, :, :1] - keys.mean(2, keepdim=True)).squeeze(2)
    selector = built(keys, [0], bits=15, tables=2)
    step = make_step(query, keys, [0], 2, torch.zeros(1, 1), Budget(tokens=1))
    selection = selector.select(step)
    assert selection.counts.tolist() == [[0]]
    assert selector.rest(step, selection).lse.tolist() == [[-math.inf]]
    assert selection.mass.tolist() == [[1.0]]


def test_heads_of_a_group_sample_together_and_weigh_apart():
    keys, query = draw(1, 1, 60, 8), draw(1, 3, 8, seed=1)
    selector = built(keys, [0], bits=2, tables=20)
    step = make_step(query, keys, [0], 60, torch.zeros(1, 3), Budget(tokens=20))
    selection = selector.select(step)
    rest = selector.rest(step, selection)
    for head in range(3):
        alone = step._replace(query=query[:, head : head + 1])
        own = selector.rest(alone, selection)
        torch.testing.assert_close(own.out[:, 0], rest.out[:, head])
        torch.testing.assert_close(own.lse[:, 0], rest.lse[:, head])


def test_what_it_refuses():
    with pytest.raises(SpecError, match="before tokens are sampled"):
        Recipe.parse("magicpig(mass=0.9)")
    with pytest.raises(SpecError, match="leave out tail"):
        Recipe.parse("magicpig + tail")
