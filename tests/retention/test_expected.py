"""Expected attention against sums over positions and products written out."""

import numpy as np
import pytest
import torch

from keyhole.attention import Logits
from keyhole.core.rope import PlainRope
from keyhole.methods import Recipe
from keyhole.retention.expected import QueryStatistics
from tests.evictions import Evicting
from tests.oracles import array

FUTURE, SINKS = 40, 2
SPEC = f"expectedattention(budget=20, sinks={SINKS}, window=6, future={FUTURE}{{}})"


def rotation(position, size):
    """The matrix that turns a column vector to a position."""
    half = size // 2
    angles = position * 10_000.0 ** (-np.arange(half) / half)
    turned = np.zeros((size, size))
    for i, angle in enumerate(angles):
        turned[i, i] = turned[i + half, i + half] = np.cos(angle)
        turned[i, i + half], turned[i + half, i] = -np.sin(angle), np.sin(angle)
    return turned


def expected_scores(queries, keys, values, start, *, covariance, epsilon, scale):
    """Of one KV head, `[N]`: queries `[G, N, D]`, tokens from `start` on."""
    size, tokens = keys.shape[1], len(keys) - start
    mean_rotation = np.mean([rotation(tokens + ahead, size) for ahead in range(FUTURE)], axis=0)
    total = np.zeros(len(keys) - start)
    for query in queries:
        plain = np.stack([rotation(t, size).T @ query[start + t] for t in range(SINKS, tokens)])
        mean, spread = plain.mean(0), np.cov(plain.T, bias=True)
        mean, spread = mean_rotation @ mean, mean_rotation @ spread @ mean_rotation.T
        logits = scale * keys[start:] @ mean
        if covariance:
            logits = logits + scale**2 / 2 * np.einsum("nd,de,ne->n", keys[start:], spread, keys[start:])
        shares = np.exp(logits - logits.max())
        total += shares / shares.sum() / len(queries)
    return (total + epsilon) * np.linalg.norm(values[start:], axis=-1)


@pytest.mark.parametrize("covariance", [True, False])
@pytest.mark.parametrize("epsilon", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(2))
def test_scores(covariance, epsilon, seed):
    options = f", covariance={str(covariance).lower()}, epsilon={epsilon}, prompt=whole"
    layer = Evicting(SPEC.format(options), seed=seed, batch=2, padding=[0, 9])
    layer.append(60)
    layer.attend(60)
    scorer, cache = layer.cache.retention.scorer, layer.cache
    found = scorer.scores(cache.storage, cache.kept)
    for row, start in enumerate([0, 9]):
        for head in range(2):
            expected = expected_scores(
                array(layer.query[row, 2 * head : 2 * head + 2]),
                *(array(tensor[row, head]) for tensor in (layer.keys, layer.values)),
                start,
                covariance=covariance,
                epsilon=epsilon,
                scale=layer.logits.scale,
            )
            np.testing.assert_allclose(found[row, head, -len(expected) :], expected, rtol=1e-3, atol=1e-7)
    layer.append(1)
    kept = layer.cache.kept.positions
    for row, start in enumerate([0, 9]):
        best = sorted(range(start + SINKS, 54), key=lambda j, row=row: -float(found[row, 0, j]))
        own = [p for p in kept[row, 0].tolist() if p >= start]
        assert own == sorted([start, start + 1, *best[:12], *range(54, 61)])


def test_pieces_of_a_prompt_make_no_difference():
    whole, pieces = (Evicting(SPEC.format(", prompt=whole")) for _ in range(2))
    whole.append(60)
    whole.attend(60)
    for start, stop in ((0, 1), (1, 30), (30, 57), (57, 60)):
        part = slice(start, stop)
        pieces.cache.append(whole.keys[:, :, part], whole.values[:, :, part])
        pieces.cache.attend(whole.query[:, :, part], whole.logits)
    one, other = (
        layer.cache.retention.scorer.scores(layer.cache.storage, layer.cache.kept)
        for layer in (whole, pieces)
    )
    assert pieces.cache.retention.scorer._statistics.count.tolist() in ([57.0], [58.0])
    assert torch.allclose(one, other, rtol=0.2)


def test_statistics_join():
    queries, counted = torch.randn(2, 3, 50, 8) + 5, torch.rand(2, 50) > 0.3
    whole = QueryStatistics.of(queries, counted)
    parts = [
        QueryStatistics.of(queries[:, :, part], counted[:, part]) for part in (slice(0, 7), slice(7, 50))
    ]
    none = QueryStatistics.of(queries, counted & False)
    for joined in (parts[0].joined(parts[1]), whole.joined(none), none.joined(whole)):
        for found, expected in zip(joined, whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_state_is_taken_over():
    spec = SPEC.format(", prompt=whole")
    layer = Evicting(spec, batch=2)
    layer.append(60)
    layer.attend(60)
    before = layer.cache.retention.scorer.scores(layer.cache.storage, layer.cache.kept)
    layer.restart(spec)
    torch.testing.assert_close(
        layer.cache.retention.scorer.scores(layer.cache.storage, layer.cache.kept), before
    )
    layer.cache.reorder(torch.tensor([1, 0]))
    torch.testing.assert_close(
        layer.cache.retention.scorer.scores(layer.cache.storage, layer.cache.kept), before[[1, 0]]
    )


def test_hidden_states_that_were_not_recorded_are_missed():
    class Queries:
        def queries(self, hidden):
            return hidden

    from dataclasses import replace

    from keyhole.core.model_info import ModelInfo

    info = replace(ModelInfo.of(1), projections=lambda _: Queries())
    layer = Recipe.parse("expectedattention(statistics=hidden_states)").layers(info)[0]
    layer.append(torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16))
    with pytest.raises(ValueError, match="were not recorded"):
        layer.attend(torch.randn(1, 4, 9, 16), Logits(0.25))


def test_the_oracles_rotation_is_the_ropes():
    vector = torch.randn(1, 1, 1, 16)
    turned = PlainRope().rotate(vector, torch.tensor([[37]]))
    np.testing.assert_allclose(
        turned.flatten(), rotation(37, 16) @ array(vector.flatten()), rtol=1e-4, atol=1e-5
    )
