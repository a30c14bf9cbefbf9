"""Keys, values and queries that look like a model's to an index: a power-law spectrum along random axes."""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.storage.tiers.memory import empty

_CHUNK = 16_384
_DECAY = 0.5  # the j-th largest axis of the keys has standard deviation proportional to j ** -_DECAY


class Synthetic:
    """A stream of tokens of one layer: each call continues it. The same seed gives the same stream.

    Legend: B batch, H query heads, Hkv KV heads, T tokens, D head size.
    """

    def __init__(
        self,
        kv_heads: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
        batch: int = 1,
    ) -> None:
        self.batch = batch
        self.kv_heads, self.head_dim, self.value_dim = kv_heads, head_dim, value_dim or head_dim
        self.dtype, self.device = dtype, torch.device(device)
        self._generator = torch.Generator(self.device).manual_seed(seed)
        axes = torch.linalg.qr(self._normal(kv_heads, head_dim, head_dim)).Q
        deviations = torch.arange(1, head_dim + 1, device=self.device) ** -_DECAY
        deviations /= deviations.square().mean().sqrt()
        self._mixing = deviations.unsqueeze(1) * axes  # [Hkv, D, D]

    def keys_values(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The next keys `[B, Hkv, T, D]` and values `[B, Hkv, T, Dv]`."""
        keys = self._empty(tokens, self.head_dim)
        for part in keys.split(_CHUNK, dim=2):
            part.copy_(self._normal(self.batch, self.kv_heads, part.shape[2], self.head_dim) @ self._mixing)
        values = self._empty(tokens, self.value_dim)
        return keys, values.uniform_(-1, 1, generator=self._generator)

    def query(self, query_heads: int) -> Tensor:
        """A query `[B, H, 1, D]` with the spectrum of the keys."""
        groups = query_heads // self.kv_heads
        drawn = self._normal(self.batch, self.kv_heads, groups, self.head_dim) @ self._mixing
        return drawn.reshape(self.batch, query_heads, 1, self.head_dim).to(self.dtype)

    def _empty(self, tokens: int, width: int) -> Tensor:
        return empty((self.batch, self.kv_heads, tokens, width), self.dtype, self.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, device=self.device)
