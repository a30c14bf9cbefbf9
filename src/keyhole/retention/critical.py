"""Attention weighted by what a value does to the layer's output (CriticalKV).

Source: Feng et al., "Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective",
arXiv 2502.03805. What dropping a token can change of the output is bounded by its attention times the L1 norm
of its value after the output projection.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, T tokens, N slots, Dv size of a value, E hidden
size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.retention.base import Allocator, Scorer, ScorerInput
from keyhole.retention.kept import Kept
from keyhole.retention.tokens import best_tokens
from keyhole.retention.wrapped import WrappedScorer
from keyhole.storage import ROOM, Chosen, GrowingBuffer, Storage, kept_rows

_EPSILON = 1e-4  # of all attention: tokens without any attention are ranked by their values
_UNKNOWN = -1.0
_PIECE = 2**24  # numbers projected at a time, to bound temporary memory


class CriticalScorer(WrappedScorer):
    """Each head's tokens are chosen in two stages, as many in all as the inner scores alone give it.

    The share `alpha` goes to the best by the inner scores, which are attention; the rest to those of most
    attention times the norm of the projected value. Norms are held until values are rewritten.

    Args:
        output: `[H, Dv, E]`, the output projection; None, without a model, is the identity.
    """

    def __init__(self, inner: Scorer, alpha: float, output: Tensor | None) -> None:
        super().__init__(inner)
        self.alpha, self.output = alpha, output
        self._norms = GrowingBuffer(ROOM)  # float32 `[B, Hkv, N, 1]`

    def pick(
        self, allocator: Allocator, storage: Storage, kept: Kept, competing: Tensor, room: Tensor
    ) -> Tensor:
        scores = self.inner.scores(storage, kept)
        counts = self.inner.pick(allocator, storage, kept, competing, room).sum(-1)
        first = best_tokens(scores, competing, (self.alpha * counts).long())
        left = competing & ~first
        return first | best_tokens(self._weighted(scores, storage, kept), left, counts - first.sum(-1))

    def scores(self, storage: Storage, kept: Kept) -> Tensor:
        return self._weighted(self.inner.scores(storage, kept), storage, kept)

    def worst(self, allocator: Allocator, storage: Storage, kept: Kept, begin: int, end: int) -> None:  # noqa: ARG002
        """Which token goes depends on both stages."""
        return

    def _weighted(self, scores: Tensor, storage: Storage, kept: Kept) -> Tensor:
        self._update(storage)
        shares = scores / scores.masked_fill(~kept.valid(), 0).sum(-1, keepdim=True).clamp(min=1e-30)
        return (shares + _EPSILON) * self._norms.view().squeeze(-1)

    def see(self, seen: ScorerInput) -> None:
        super().see(seen)
        self._update(seen.storage)

    def _update(self, storage: Storage) -> None:
        """Find the norms that are not known yet, from the first slot on of which that is so."""
        norms = self._norms.view().squeeze(-1)
        unknown = (norms == _UNKNOWN).flatten(0, 1).any(0).nonzero()
        if len(unknown):
            start = int(unknown[0])
            norms[:, :, start:] = projected_norms(storage.values(start), self.output)

    def append(self, batch: int, heads: int, tokens: int, device: torch.device) -> None:
        super().append(batch, heads, tokens, device)
        self._norms.append(torch.full((batch, heads, tokens, 1), _UNKNOWN, device=device))

    def rewritten(self) -> None:
        super().rewritten()
        self._norms.view().fill_(_UNKNOWN)

    def keep(self, kept: Chosen) -> None:
        super().keep(kept)
        self._norms = kept_rows(self._norms, kept, 0.0)

    def clear(self) -> None:
        super().clear()
        self._norms = GrowingBuffer(ROOM)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self._norms.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        held = super().state()
        return held | {"norms": self._norms.view()} if self._norms.length else held

    def restore(self, state: dict[str, Tensor]) -> None:
        super().restore(state)
        self._norms = GrowingBuffer(ROOM)
        if "norms" in state:
            self._norms.append(state["norms"])

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._norms.nbytes


def projected_norms(values: Tensor, output: Tensor | None) -> Tensor:
    """L1 norms of `values [B, Hkv, T, Dv]` after the projection of each query head, `[H, Dv, E]`.

    Returns:
        Float32 `[B, Hkv, T]`, a mean over the query heads of a group.
    """
    if output is None:
        return values.float().abs().sum(-1)
    heads, size = values.shape[1], output.shape[-1]
    weights = output.to(values.device).float().unflatten(0, (heads, -1))
    piece = max(1, _PIECE // (len(values) * len(output) * size))
    norms = [
        torch.einsum("bhtd,hgde->bhgte", part.float(), weights).abs().sum(-1).mean(2)
        for part in values.split(piece, dim=2)
    ]
    return torch.cat(norms, dim=-1)
