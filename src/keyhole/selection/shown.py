"""The newest queries of a prompt, which say along what keys matter.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, Q queries, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.core.layout import Regions


class Shown:
    """The latest queries that a selector was shown."""

    def __init__(self) -> None:
        self._latest: tuple[Tensor, int] | None = None  # `[B, Hkv, G, Q, D]`, and of how many tokens

    def see(self, queries: Tensor, kv_heads: int, tokens: int) -> None:
        """Take over `queries [B, H, Q, D]`, as `Selector.see`."""
        self._latest = queries.unflatten(1, (kv_heads, -1)), tokens

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""
        if self._latest is not None:
            queries, tokens = self._latest
            self._latest = queries.index_select(0, rows.to(queries.device)), tokens

    def of(self, row: int, padding: int) -> Tensor | None:
        """Those of a batch row with so much padding, `[Hkv, G * Q, D]`; None of none."""
        if self._latest is None:
            return None
        queries, tokens = self._latest
        shown = queries.shape[3]
        real = max(0, min(shown, tokens - padding))
        return queries[row, :, :, shown - real :].flatten(1, 2)

    def moments(self, regions: Regions) -> Tensor | None:
        """Second moments `[B, Hkv, D, D]`, float32, of the queries, of padding left out; None of none."""
        if self._latest is None:
            return None
        queries, tokens = self._latest
        shown = queries.shape[3]
        counts = [max(1, min(shown, tokens - unused)) for unused in regions.padding]
        real = torch.tensor(counts, device=queries.device)
        counted = torch.arange(shown, device=queries.device) >= (shown - real).unsqueeze(1)
        grouped = queries.float().masked_fill(~counted[:, None, None, :, None], 0.0).flatten(2, 3)
        return grouped.transpose(-1, -2) @ grouped / (queries.shape[2] * real).view(-1, 1, 1, 1)
