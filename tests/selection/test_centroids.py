"""Clusters of similar keys ranked by their mean keys, against the formulae."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.methods import Recipe
from keyhole.selection import CentroidSelector
from keyhole.selection.quantisers.keyclusters import KeyClusters
from tests import oracles
from tests.layers import Layer, slots_read
from tests.lives import live, live_briefly
from tests.oracles_tail import estimated_attention
from tests.steps import competing, make_step

SHORT = "sinks=2, window=6, dense_below=0"


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(keys, first, *, tokens=5, cut=None, metric="cosine"):
    selector = CentroidSelector(KeyClusters(tokens, 6, torch.float32, metric))
    cut = cut or keys.shape[2]
    selector.build(keys[:, :, :cut], competing(first, cut, cut))
    if cut < keys.shape[2]:
        selector.append(keys[:, :, cut:])
    return selector


def ranked(query, keys, labels, competes, anchors, *, scale):
    """query [G, D], keys [N, D] -> the clusters, best first, each with its share of a token.

    Of cluster i with mean key c: exp(q c) over the sum of N_j exp(q c_j), a mean over the query heads.
    """
    names = sorted({labels[n] for n in competes})
    means = np.stack([keys[labels == name].mean(0) for name in names])
    sizes = np.array([sum(labels[n] == name for n in competes) for name in names])
    shares = np.zeros(len(names))
    for q, anchor in zip(query, anchors, strict=True):
        weights = np.exp(scale * means @ q)
        shares += weights / (np.exp(anchor) + (sizes * weights).sum()) / len(query)
    return sorted(zip(-shares, names, strict=True))


@settings(max_examples=40)
@given(st.sampled_from([13, 31, 63, 100]), st.integers(1, 4), st.integers(1, 70), st.data())
def test_whole_clusters_are_read_and_the_last_from_its_lowest_slot(tokens, group, budget, data):
    last = data.draw(st.integers(6, tokens))
    first = [data.draw(st.integers(0, last - 1)) for _ in range(2)]
    keys, query = draw(2, 2, tokens, 8, seed=tokens), 2 * draw(2, 2 * group, 8, seed=budget)
    anchor = draw(2, 2 * group, seed=1)
    selector = built(keys, first, cut=data.draw(st.integers(max(first) + 1, tokens)))
    step = make_step(query, keys, first, last, anchor, Budget(tokens=budget))
    selection = selector.select(step)
    for row in range(2):
        competes = list(range(first[row], last))
        for head in range(2):
            labels = oracles.array(selector.clusters.labels[row, head])
            own = slice(head * group, (head + 1) * group)
            order = ranked(
                oracles.array(query[row, own]), oracles.array(keys[row, head]), labels, competes,
                oracles.array(anchor[row, own]), scale=8**-0.5,
            )  # fmt: skip
            wanted, held = [], 0.0
            for share, name in order:
                mine = [n for n in competes if labels[n] == name][: budget - len(wanted)]
                wanted, held = wanted + mine, held - share * len(mine)
            found = selection.slots[row, head, : selection.counts[row, head]].tolist()
            assert found == sorted(wanted)
            means = {name: keys[row, head][labels == name].mean(0) for name in set(labels)}
            logits = torch.stack([query[row, own] @ means[labels[n]] for n in competes]).T * 8**-0.5
            total = torch.logaddexp(logits.logsumexp(-1), anchor[row, own])
            held += float((anchor[row, own] - total).exp().mean())
            assert float(selection.mass[row, head]) == pytest.approx(held, abs=1e-4)


def test_clusters_are_the_nearest_by_the_cosine():
    """Keys of three directions, of very different lengths, fall apart by direction."""
    directions = torch.linalg.qr(draw(8, 8))[0][:3]
    which = torch.arange(60) % 3
    lengths = torch.logspace(-1, 1, 60).unsqueeze(1)
    keys = (directions[which] * lengths + 0.001 * draw(60, 8, seed=1)).view(1, 1, 60, 8)
    clusters = KeyClusters(20, 10, torch.float32, "cosine")
    clusters.take(keys, [0])
    labels = clusters.labels[0, 0]
    assert all(len(set(labels[which == each].tolist())) == 1 for each in range(3))
    assert len(set(labels.tolist())) == 3
    for name in range(3):
        torch.testing.assert_close(clusters.keys[0, 0, name], keys[0, 0][labels == name].sum(0))


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "centred"])
def test_each_key_is_in_the_cluster_of_the_nearest_mean(metric):
    """When Lloyd's algorithm has come to rest."""
    keys = draw(1, 1, 90, 4) + 3
    clusters = KeyClusters(15, 200, torch.float32, metric)
    clusters.take(keys, [0])
    points = oracles.array(keys[0, 0])
    points = points - points.mean(0) if metric == "centred" else points
    labels = oracles.array(clusters.labels[0, 0])
    means = np.stack([points[labels == name].mean(0) for name in range(6)])
    if metric == "euclidean":
        nearest = ((points[:, None] - means) ** 2).sum(-1).argmin(1)
    else:
        nearest = (points @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(1)
    assert (nearest == labels).all()


def test_rows_are_clustered_as_they_would_be_alone():
    keys = draw(2, 2, 60, 8)
    both = built(keys, [0, 17])
    for row, first in enumerate([0, 17]):
        alone = built(keys[row : row + 1], [first])
        assert torch.equal(both.clusters.labels[row], alone.clusters.labels[0])


@pytest.mark.parametrize("window", [1, 6, 30])
def test_a_long_life(window):
    live(f"clusterkv(tokens=4, budget=9, sinks=3, window={window}, dense_below=0)", softcap=5.0)


class Zoned(Layer):
    """A layer whose steps are exact over what is read, and by cluster over the rest."""

    def step(self):
        self.append(1)
        out = oracles.array(self.attend())
        clusters, last = self.cache.selector.clusters, self.observed.read.regions.last
        read, (scale, softcap, _) = slots_read(self), self.logits
        for row in range(len(out)):
            for head in range(self.heads):
                parts = (self.keys, self.values, clusters.labels[..., :last])
                keys, values, labels = (oracles.array(part[row, head // 2]) for part in parts)
                expected = estimated_attention(
                    oracles.array(self.query[row, head, 0]), keys, values, set(read[row][head // 2]), labels,
                    scale=scale, softcap=softcap,
                )  # fmt: skip
                np.testing.assert_allclose(out[row, head, 0], expected, rtol=3e-3, atol=3e-4)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_what_is_not_read_is_estimated_through_a_life(softcap):
    layer = Zoned(f"retroinfer(tokens=5, budget=9, {SHORT})", batch=2, padding=[0, 9], softcap=softcap)
    live_briefly(layer)
    fresh = Recipe.parse(f"retroinfer(tokens=5, budget=9, {SHORT})").layers(1)[0]
    fresh.restore({name: tensor.clone() for name, tensor in layer.cache.state().items()}, layer.cache.indexed)
    layer.cache = fresh
    layer.cache.observe(layer._observe)
    for _ in range(9):
        layer.step()


def test_tail_around_an_estimate_is_refused():
    with pytest.raises(SpecError, match="leave out tail"):
        Recipe.parse("retroinfer + tail")
