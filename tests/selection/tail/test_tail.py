"""The rest of a step by estimate, against brute force; nothing of it where everything is read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.attention import Logits, dense_attention
from keyhole.cache.captured import check_capturable
from keyhole.cache.position import DecodePosition
from keyhole.core.errors import SpecError
from keyhole.methods import Recipe
from keyhole.selection import Step
from tests import oracles
from tests.cache.test_together import Together
from tests.layers import Layer, check_dense, slots_read
from tests.lives import live_briefly
from tests.oracles_tail import estimated_attention

SHORT = "sinks=2, window=6, dense_below=0"
METHODS = {
    "oracle": "oracle(budget={}, {})",
    "pqcache": "pqcache(budget={}, {}, subspaces=4, bits=3, iterations=2)",
    "quest": "quest(budget={}, {}, page=5)",
    "a2ats": "a2ats(budget={}, {})",
    "mpcache": "mpcache(budget={}, {}, keep=1.0, fine=2, coarse=6)",
    "infllm": "infllm(budget={}, {}, block=8, representatives=2)",
    "tokenselect": "tokenselect(budget={}, {})",
    "delta": "delta(budget={}, {})",
    "clusterkv": "clusterkv(budget={}, {}, tokens=4)",
    "loki": "loki(budget={}, {}, rank=3)",
    "host": "quest(budget={}, {}, page=5, place=host)",
    "disk": "oracle(budget={}, {}, place=disk, block_cache='1MB')",
}


def spec(name, budget=9, tail="tail(tokens=5, dtype=float32)"):
    return METHODS[name].format(budget, SHORT) + f" + {tail}"


class Tailed(Layer):
    """A layer each step of which is compared with the oracle's; `least` is the smallest count of clusters."""

    def step(self):
        self.append(1)
        out = oracles.array(self.attend())
        assert self.observed is not None
        selector = self.cache.selector
        clusters, read = selector.clusters, slots_read(self)
        estimates = selector.inner.token_logits(self._step()) if selector._by_tokens else None
        for row in range(len(out)):
            for head in range(self.heads):
                expected = self._expected(row, head, clusters, set(read[row][head // 2]), estimates)
                np.testing.assert_allclose(out[row, head, 0], expected, rtol=3e-3, atol=3e-4)

    def _expected(self, row, head, clusters, read, estimates):
        group, last = head // 2, self.observed.read.regions.last
        keys, values, labels = (
            oracles.array(part[row, group]) for part in (self.keys, self.values, clusters.labels)
        )
        query, cap = oracles.array(self.query[row, head, 0]), self.logits.softcap
        if estimates is not None:
            estimates = oracles.array(estimates[row, group, head % 2])
        return estimated_attention(
            query, keys, values, read, labels[:last], scale=self.logits.scale, softcap=cap,
            estimates=estimates,
        )  # fmt: skip

    def _step(self):
        """The step as its selector saw it, of which logits need no more than this."""
        seen = self.observed
        anchor = torch.zeros(seen.query.shape[:2])
        budget = self.cache.reading.budget
        return Step(seen.query, seen.storage, seen.read.regions, anchor, seen.logits, budget)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("logits", ["auto", "means"])
def test_steps_are_the_oracles_through_a_life(name, logits):
    live_briefly(
        Tailed(spec(name, tail=f"tail(tokens=5, logits={logits}, dtype=float32)"), batch=2, padding=[0, 9])
    )


def test_soft_capped_logits():
    layer = Tailed(spec("quest"), softcap=3.0)
    layer.append(150)
    for _ in range(3):
        layer.step()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["oracle", "quest"]),
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(20, 120),
    st.integers(0, 9),
)
def test_any_sizes(name, budget, tokens, length, seed):
    layer = Tailed(spec(name, budget, f"tail(tokens={tokens}, iterations=2, dtype=float32)"), seed=seed)
    layer.append(length)
    layer.append(1)
    layer.attend()
    if layer.observed is not None:
        layer.step()


@pytest.mark.parametrize("name", ["oracle", "pqcache", "quest", "a2ats", "infllm", "tokenselect"])
@pytest.mark.parametrize("logits", ["auto", "means"])
def test_nothing_is_left_of_what_is_read(name, logits):
    everything = METHODS[name].format("{}", SHORT).replace("budget={}", "mass=1.0, floor=100000")
    layer = Layer(f"{everything} + tail(tokens=5, logits={logits}, dtype=float32)", batch=2, padding=[0, 9])
    layer.append(200)
    for _ in range(3):
        layer.append(1)
        out = layer.attend()
        assert layer.observed is not None
        check_dense(layer, out)


@pytest.mark.parametrize("name", ["oracle", "pqcache", "quest"])
def test_hidden_tokens_are_not_estimated(name):
    """What a mask hides inside a row is in clusters, but not in the answer."""
    layer = Layer(spec(name, tail="tail(tokens=1, dtype=float32)"))
    layer.append(100)
    layer.append(1)
    layer.values[:, :, 30:40] *= 50
    mask = torch.ones(1, 1, 1, 101, dtype=torch.bool)
    mask[..., 30:40] = False
    fresh = Recipe.parse(spec(name, tail="tail(tokens=1, dtype=float32)")).layers(1)[0]
    fresh.append(layer.keys, layer.values)
    query = torch.randn(1, 4, 1, 16, generator=torch.Generator().manual_seed(3))
    shown = [*range(30), *range(40, 101)]
    expected = dense_attention(
        query, layer.keys[:, :, shown], layer.values[:, :, shown], scale=layer.logits.scale
    )
    torch.testing.assert_close(fresh.attend(query, layer.logits, mask=mask), expected, rtol=1e-3, atol=1e-3)


def test_rows_are_as_alone():
    """A row's clusters do not depend on what else is in the batch."""
    both = Layer(spec("oracle"), batch=2, padding=[0, 9])
    both.append(150)
    both.attend()
    alone = Recipe.parse(spec("oracle")).layers(1)[0]
    alone.append(both.keys[1:, :, 9:], both.values[1:, :, 9:])
    alone.attend(both.query[1:], both.logits)
    labels = (cache.selector.clusters.labels for cache in (both.cache, alone))
    ours, lone = (part[row, :, skip:] for part, row, skip in zip(labels, (1, 0), (9, 0), strict=True))
    torch.testing.assert_close(ours, lone)


def test_a_restored_layer_goes_on():
    layer = Layer(spec("pqcache"))
    layer.append(150)
    layer.attend()
    layer.append(30)
    for _ in range(2):
        layer.append(1)
        layer.attend()
    fresh = Recipe.parse(spec("pqcache")).layers(1)[0]
    fresh.restore({name: part.clone() for name, part in layer.cache.state().items()}, layer.cache.indexed)
    query = layer.draw(1, 4, 1, 16)
    torch.testing.assert_close(fresh.attend(query, layer.logits), layer.cache.attend(query, layer.logits))


def test_it_is_counted():
    plain, tailed = (Layer(text) for text in (METHODS["quest"].format(9, SHORT), spec("quest")))
    for layer in (plain, tailed):
        layer.append(150)
        layer.append(1)
        layer.attend()
    clusters = tailed.cache.selector.clusters
    assert tailed.cache.usage.bytes - plain.cache.usage.bytes >= 2 * clusters.cluster_bytes
    held = tailed.cache.footprint.device - plain.cache.footprint.device
    assert held == clusters.nbytes > 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tail", "none"),
        ("snapkv + tail", "none"),
        ("pqcache + tail + tail", "twice"),
        ("tokenselect(renumber=true) + tail", "renumber"),
    ],
)
def test_what_it_cannot_estimate_beside_is_refused(text, why):
    with pytest.raises(SpecError, match=why):
        Recipe.parse(text)


def test_captured_steps_are_refused():
    layer = Layer(spec("quest"))
    layer.append(150)
    layer.attend()
    position = DecodePosition(150, 160, (0,), torch.device("cpu"))
    with pytest.raises(ValueError, match="TailSelector"):
        check_capturable(layer.cache, position)


@pytest.mark.parametrize("name", METHODS)
def test_clusters_of_one_token_are_dense_attention(name):
    layer = Layer(spec(name, tail="tail(tokens=1, dtype=float32)"), batch=2, padding=[0, 9])
    layer.append(80)
    for _ in range(12):
        layer.append(1)
        out = layer.attend()
        assert layer.observed is not None
        check_dense(layer, out)


@pytest.mark.parametrize("name", ["oracle", "quest"])
def test_tokens_that_share_a_selection(name):
    asked = Together(spec(name, tail="tail(tokens=1, dtype=float32)"))
    assert asked.selected
    expected = dense_attention(asked.query, asked.keys, asked.values, scale=asked.logits.scale)
    torch.testing.assert_close(asked.out, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beside_a_method_that_drops_tokens(dtype):
    """Clusters of one token leave nothing out of what is kept."""
    recipe = Recipe.parse(f"snapkv(budget=0.5, heads=uniform) + {spec('oracle', tail='tail(tokens=1)')}")
    layer, random, logits = recipe.layers(1)[0], torch.Generator().manual_seed(1), Logits(0.25)
    keys, values = (torch.randn(2, 2, 120, 16, generator=random).to(dtype) for _ in range(2))
    layer.append(keys, values)
    layer.attend(torch.randn(2, 4, 120, 16, generator=random).to(dtype), logits)
    for _ in range(12):
        layer.append(*(torch.randn(2, 2, 1, 16, generator=random).to(dtype) for _ in range(2)))
        query = torch.randn(2, 4, 1, 16, generator=random).to(dtype)
        with layer.observed() as seen:
            out = layer.attend(query, logits)
        assert seen
        assert layer.storage.length < layer.length
        held = layer.storage.keys(), layer.storage.values()
        expected = dense_attention(query, *held, scale=0.25)
        torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
