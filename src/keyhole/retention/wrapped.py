"""A scorer around another: what a subclass does not override goes to the inner one."""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.core.needs import Needs
from keyhole.retention.base import Scorer, ScorerInput
from keyhole.retention.kept import Kept
from keyhole.retention.policy import EvictionPolicy
from keyhole.storage import Chosen, Merging, Storage

_INNER = "inner."


class WrappedScorer(Scorer):
    """Does what `inner` does."""

    def __init__(self, inner: Scorer) -> None:
        self.inner = inner
        self.watches, self.is_attention = inner.watches, inner.is_attention
        self.looks_back = inner.looks_back

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return self.inner.needs

    def see_hidden_states(self, hidden: Tensor) -> None:
        self.inner.see_hidden_states(hidden)

    def see_queries(self, queries: Tensor, storage: Storage) -> None:
        self.inner.see_queries(queries, storage)

    def see(self, seen: ScorerInput) -> None:
        self.inner.see(seen)

    def scores(self, storage: Storage, kept: Kept) -> Tensor:
        return self.inner.scores(storage, kept)

    def merge(self, storage: Storage, kept: Kept, chosen: Chosen, policy: EvictionPolicy) -> Merging | None:
        return self.inner.merge(storage, kept, chosen, policy)

    def rewritten(self) -> None:
        self.inner.rewritten()

    def append(self, batch: int, heads: int, tokens: int, device: torch.device) -> None:
        self.inner.append(batch, heads, tokens, device)

    def keep(self, kept: Chosen) -> None:
        self.inner.keep(kept)

    def clear(self) -> None:
        self.inner.clear()

    def crop(self, tokens: int) -> None:
        self.inner.crop(tokens)

    def reorder(self, rows: Tensor) -> None:
        self.inner.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        return {_INNER + name: tensor for name, tensor in self.inner.state().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        own = {name.removeprefix(_INNER): held for name, held in state.items() if name.startswith(_INNER)}
        self.inner.restore(own)

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes
