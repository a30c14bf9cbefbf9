"""An index of keys without their rotation, asked as if all keys were equally far back.

Beyond the range of a model, logits at true positions say nothing: TokenSelect (arXiv 2411.02886) ranks keys
before RoPE. Here any index does; `distant.py` has its votes on keys, which need a copy of them.

Legend: B batch, H query heads, Hkv KV heads, Q queries, T tokens, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.core.layout import Regions
from keyhole.core.rope import FixedDistance
from keyhole.selection.base import Selection, Selector, Step
from keyhole.selection.distant import BareKeys


class _Shown(NamedTuple):
    """Queries `[B, H, Q, D]` that came before the index, so that the padding of their rows was unknown."""

    queries: Tensor
    kv_heads: int
    tokens: int


class DistantIndex(Selector):
    """The index `inner`, which is given keys before RoPE, and queries moved to one distance from them.

    Nothing but the index is held.
    """

    def __init__(self, inner: Selector, scoring: FixedDistance) -> None:
        self.inner, self.scoring = inner, scoring
        self._padding: Tensor | None = None  # int64 `[B]`, once there is an index
        self._shown: _Shown | None = None

    @property
    def minimum(self) -> int:
        return self.inner.minimum

    @property
    def stale(self) -> bool:
        return self.inner.stale

    def build(self, keys: Tensor, regions: Regions) -> None:
        self._padding = torch.tensor(regions.padding, device=keys.device)
        if self._shown is not None:
            self.see(*self._shown)
            self._shown = None
        self.inner.build(self._bare(keys, 0), regions)
        self.length = self.inner.length

    def refit(self, keys: Tensor, regions: Regions) -> None:
        self.inner.refit(self._bare(keys, 0), regions)
        self.length = self.inner.length

    def append(self, keys: Tensor) -> None:
        self.inner.append(self._bare(keys, self.length))
        self.length = self.inner.length

    def select(self, step: Step) -> Selection:
        query = self.scoring.query(step.query, step.regions.ends - 1, self._known())
        return self.inner.select(step._replace(query=query.to(step.query.dtype)))

    def see(self, queries: Tensor, kv_heads: int, tokens: int) -> None:
        if self._padding is None:
            self._shown = _Shown(queries, kv_heads, tokens)
            return
        slots = torch.arange(tokens - queries.shape[2], tokens, device=queries.device)
        moves = self.scoring.distance - (slots - self._padding.unsqueeze(1))
        turned = self.scoring.rope.rotate(queries, moves).to(queries.dtype)
        self.inner.see(turned, kv_heads, tokens)

    def bytes_read(self, step: Step) -> int:
        return self.inner.bytes_read(step)

    def crop(self, length: int) -> None:
        self.inner.crop(length)
        self.length = self.inner.length
        if length == 0:
            self._padding = self._shown = None

    def reorder(self, rows: Tensor) -> None:
        self.inner.reorder(rows)
        if self._padding is not None:
            self._padding = self._padding.index_select(0, rows.to(self._padding.device))
        if self._shown is not None:
            queries = self._shown.queries
            self._shown = self._shown._replace(queries=queries.index_select(0, rows.to(queries.device)))

    def state(self) -> dict[str, Tensor]:
        if self._padding is None or not self.length:
            return {}
        return self.inner.state() | {"padding": self._padding}

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        fields = dict(state)
        self._padding, self._shown = fields.pop("padding", None), None
        self.inner.restore(fields, length)
        self.length = self.inner.length

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes

    def _bare(self, keys: Tensor, begin: int) -> Tensor:
        """`keys [B, Hkv, T, D]` of the slots from `begin` on, before RoPE."""
        bare = BareKeys(self.scoring, self._known(), begin)
        bare.add(keys)
        return bare.keys()

    def _known(self) -> Tensor:
        if self._padding is None:
            raise ValueError("nothing is indexed yet; call build first")
        return self._padding


def at_distance(index: Selector, scoring: FixedDistance | None) -> Selector:
    """An index that ranks keys at one distance, or at their own positions where there is none."""
    return index if scoring is None else DistantIndex(index, scoring)
