"""A layer fed with tokens that a test makes, and what it keeps."""

import torch

from keyhole.attention import Logits
from keyhole.methods import Recipe


class Fed:
    """One layer of a method; `keys [B, Hkv, N, D]` are of every token there was."""

    def __init__(self, spec, *, batch=1, heads=2, groups=2, size=16, seed=0):
        self.cache = Recipe.parse(spec).layers(1)[0]
        self.shape, self.logits = (batch, heads, groups, size), Logits(size**-0.5)
        self.random = torch.Generator().manual_seed(seed)
        self.keys = torch.empty(batch, heads, 0, size)

    def draw(self, count):
        """Keys `[B, Hkv, count, D]` and queries `[B, H, count, D]`."""
        batch, heads, groups, size = self.shape
        keys = torch.randn(batch, heads, count, size, generator=self.random)
        return keys, 2 * torch.randn(batch, heads * groups, count, size, generator=self.random)

    def feed(self, keys, query, mask=None):
        self.keys = torch.cat([self.keys, keys], 2)
        self.cache.append(keys, torch.zeros_like(keys))
        self.cache.attend(query, self.logits, mask=mask)

    def kept(self, row=0):
        """Positions, for each KV head, without padding."""
        kept = self.cache.kept
        return [[p - kept.padding[row] for p in head if p >= 0] for head in kept.positions[row].tolist()]

    def scores(self):
        return self.cache.retention.scorer.scores(self.cache.storage, self.cache.kept)
