"""What outliers and sinks do for ShadowKV: the published ablation, on keys made for it."""

import numpy as np
import pytest
import torch

from keyhole.attention import Logits
from keyhole.core.model_info import ModelInfo
from keyhole.core.rope import NoRope
from keyhole.methods import Recipe
from tests import oracles

TOKENS, HEADS, SIZE, CHUNK, NEEDLES = 2048, 2, 32, 8, 6
STRENGTH = 8.0  # of a needle's key, among keys of length about SIZE ** 0.5 that are like their neighbours
QUERY = 1.5


class Text:
    """Chunks of similar keys. A token in some of them, and the first of all, has a strong key of its own."""

    def __init__(self, seed):
        random = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(shape, generator=random)

        chunks = TOKENS // CHUNK
        keys = draw(1, HEADS, chunks, 1, SIZE) + 0.3 * draw(1, HEADS, chunks, CHUNK, SIZE)
        self.keys, self.values = keys.flatten(2, 3), draw(1, HEADS, TOKENS, SIZE)
        self.ways = torch.nn.functional.normalize(draw(NEEDLES + 1, SIZE), dim=-1)
        inside = torch.randint(CHUNK, (NEEDLES,), generator=random)
        self.needles = (4 + torch.randperm(chunks - 20, generator=random)[:NEEDLES]) * CHUNK + inside
        self.keys[:, :, self.needles] = STRENGTH * self.ways[1:]
        self.keys[:, :, 0] = STRENGTH * self.ways[0]

    def ask(self, way, options):
        """The relative error of one step's output, and the slots its heads read beside sinks and window."""
        spec = f"shadowkv(budget=256, chunk={CHUNK}, rank=24, dense_below=0, {options})"
        cache = Recipe.parse(spec).layers(ModelInfo((0,), rope=lambda _place: NoRope()))[0]
        seen = []
        cache.observe(seen.append)
        cache.append(self.keys, self.values)
        query = (QUERY * way).expand(1, HEADS, 1, SIZE).contiguous()
        out = oracles.array(cache.attend(query, Logits(1.0)))[0, :, 0]
        arrays = (oracles.array(part[0]) for part in (query[:, :, 0], self.keys, self.values))
        full, _ = oracles.attention(*arrays, [range(TOKENS)] * HEADS, scale=1.0)
        picked = seen[0].read.selection
        read = [
            set(row[:count].tolist()) for row, count in zip(picked.slots[0], picked.counts[0], strict=True)
        ]
        return float(np.linalg.norm(out - full) / np.linalg.norm(full)), read


def ablation(options, texts=3):
    """Mean error of attention to needles, share of them that is read, mean error of attention to the sink."""
    errors, found, sink = [], [], []
    for seed in range(texts):
        text = Text(seed)
        for slot, way in zip(text.needles.tolist(), text.ways[1:], strict=True):
            error, read = text.ask(way + text.ways[0], options)
            errors.append(error)
            found += [slot in slots for slots in read]
        sink.append(text.ask(text.ways[0], options)[0])
    return np.mean(errors), np.mean(found), np.mean(sink)


def test_needles_are_lost_without_outliers():
    """The mean of a chunk hides its one strong key, and a low rank blurs it."""
    error, found, _ = ablation("outliers=48, sinks=16")
    assert found == 1.0
    assert error < 0.25
    error, found, _ = ablation("outliers=0, sinks=16")
    assert found < 0.5
    assert error > 0.75


@pytest.mark.parametrize("options", ["outliers=48, sinks=0", "outliers=0, sinks=16"])
def test_the_sink_needs_one_of_both(options):
    """Published: without outliers the first chunk, which is one of them, is missed, and that costs most."""
    _, _, with_one = ablation(options)
    _, _, without = ablation("outliers=0, sinks=0")
    assert with_one < 0.5 * without
