"""Retain: which tokens are kept at all.

Legend: B batch, H query heads, Hkv KV heads, Q queries, N slots, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import Logits
from keyhole.budget import Budget
from keyhole.regions import packed_slots
from keyhole.retention.kept import Kept
from keyhole.storage import Chosen, Storage


class Seen(NamedTuple):
    """The newest tokens' `query [B, H, Q, D]`, after they were attended to, and all that is kept.

    Attributes:
        weights: float32 `[B, H, N]`, the logits of a decode step where the scorer `watches`, -inf in filling.
    """

    query: Tensor
    storage: Storage
    kept: Kept
    logits: Logits
    weights: Tensor | None = None


class Scorer(ABC):
    """How much each kept token of a layer is worth.

    It is shown each prompt, piece by piece, and each decode step. One that `watches` is shown the logits of
    decode steps too, which costs time.
    """

    watches: bool = False

    @abstractmethod
    def see(self, seen: Seen) -> None:
        """Take note of new tokens, one or several, that were just attended to."""

    @abstractmethod
    def scores(self, storage: Storage, kept: Kept) -> Tensor:
        """Float32 `[B, Hkv, N]`, the worth of what is kept; no meaning in filling."""

    def keep(self, kept: Chosen) -> None:  # noqa: B027 - most hold nothing by slot
        """The other slots are gone."""

    def clear(self) -> None:  # noqa: B027
        """All tokens are gone."""

    def crop(self, tokens: int) -> None:  # noqa: B027
        """The newest so many tokens are gone; their slots go by `keep`."""

    def reorder(self, rows: Tensor) -> None:  # noqa: B027
        """Take the batch rows `rows`, in that order."""

    def state(self) -> dict[str, Tensor]:
        """What is held, as named tensors."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Take over what `state` of an equal scorer returned."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 0


class Picker(ABC):
    """Which of the tokens that compete are kept, by their worth."""

    @abstractmethod
    def pick(self, scores: Tensor, competing: Tensor, room: Tensor) -> Tensor:
        """Bool `[B, Hkv, N]`, a part of what competes.

        Args:
            scores: float32 `[B, Hkv, N]`.
            competing: bool `[B, Hkv, N]`.
            room: int64 `[B]`, tokens to pick for each head, or on average where heads differ.
        """


class Keeping(NamedTuple):
    """How much of a layer is kept, and when the rest is dropped.

    Attributes:
        budget: tokens kept for each head; sinks and window are among them.
        share: the layer's multiple of the budget.
        sinks: first tokens of the text, which are always kept.
        window: newest tokens, which are always kept.
        every: generated tokens after which tokens are dropped again; 0 is never.
        whole_prompt: drop only when the prompt is complete, not after each piece of it.
    """

    budget: Budget
    share: float
    sinks: int
    window: int
    every: int
    whole_prompt: bool

    def limit(self, context: int) -> int:
        """Tokens to keep of a context of so many."""
        return max(round(self.share * self.budget.limit(context)), self.sinks + self.window, 1)


class Retention:
    """Keeps the sinks, the newest tokens, and what a picker picks of the rest by a scorer's scores."""

    def __init__(self, scorer: Scorer, picker: Picker, keeping: Keeping) -> None:
        self.scorer, self.picker, self.keeping = scorer, picker, keeping

    def choose(self, storage: Storage, kept: Kept) -> Chosen | None:
        """What is to be kept of what is; None is all of it."""
        limits = [self.keeping.limit(context) for context in kept.context]
        if kept.slots <= min(limits):
            return None
        slots = torch.arange(kept.slots, device=kept.filling.device)
        begin = (kept.filling + self.keeping.sinks).unsqueeze(-1)
        competing = (slots >= begin) & (slots < kept.slots - self.keeping.window)
        always = kept.valid() & ~competing
        room = torch.tensor(limits, device=slots.device) - always.sum(-1).amax(-1)
        picked = self.picker.pick(self.scorer.scores(storage, kept), competing, room.clamp(min=0))
        return Chosen(*packed_slots(always | picked))
