"""Retain: which tokens are kept at all.

Legend: B batch, H query heads, Hkv KV heads, Q queries, N slots, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import Logits
from keyhole.core.layout import packed_slots
from keyhole.core.needs import Informed
from keyhole.retention.kept import Kept
from keyhole.retention.policy import EvictionPolicy
from keyhole.storage import Chosen, Merging, Storage


class ScorerInput(NamedTuple):
    """The newest tokens' `query [B, H, Q, D]`, after they were attended to, and all that is kept.

    Attributes:
        weights: float32 `[B, H, N]`, the logits of a decode step where the scorer `watches`, -inf in filling.
        generated: whether it is a decode step; else a prompt, or a piece of one.
    """

    query: Tensor
    storage: Storage
    kept: Kept
    logits: Logits
    weights: Tensor | None = None
    generated: bool = False


class Scorer(Informed, ABC):
    """How important each kept token of a layer is.

    It is shown each prompt, piece by piece with all its queries, and each decode step where the policy drops
    tokens while generating. One that `watches` is shown the logits of decode steps too, which costs time.
    Scores that `is_attention` are shares of attention or sums of them, so never negative. What is kept of a
    prompt depends on its newest `looks_back` queries, on all of them where that is None.
    """

    watches: bool = False
    is_attention: bool = False
    looks_back: int | None = None

    @abstractmethod
    def see(self, seen: ScorerInput) -> None:
        """Take note of new tokens, one or several, that were just attended to."""

    @abstractmethod
    def scores(self, storage: Storage, kept: Kept) -> Tensor:
        """Float32 `[B, Hkv, N]`, the importance of what is kept; no meaning in filling."""

    def pick(
        self, allocator: Allocator, storage: Storage, kept: Kept, competing: Tensor, room: Tensor
    ) -> Tensor:
        """Which of the tokens that compete are kept, as `Allocator.pick` by the scores."""
        return allocator.pick(self.scores(storage, kept), competing, room)

    def worst(
        self, allocator: Allocator, storage: Storage, kept: Kept, begin: int, end: int
    ) -> Tensor | None:
        """Which slot goes of [begin, end) where just one does, as `Allocator.worst` by the scores."""
        return allocator.worst(self.scores(storage, kept)[..., begin:end])

    def merge(
        self,
        storage: Storage,  # noqa: ARG002
        kept: Kept,  # noqa: ARG002
        chosen: Chosen,  # noqa: ARG002
        policy: EvictionPolicy,  # noqa: ARG002
    ) -> Merging | None:
        """What kept tokens take over of those that are dropped now; None is to forget these."""
        return None

    def rewritten(self) -> None:
        """Keys or values of kept tokens are no longer what they were."""

    # Most hold nothing by slot.
    def append(self, batch: int, heads: int, tokens: int, device: torch.device) -> None:
        """So many tokens came, for each of the KV heads; they will be seen."""

    def keep(self, kept: Chosen) -> None:
        """The other slots are gone."""

    def clear(self) -> None:
        """All tokens are gone."""

    def crop(self, tokens: int) -> None:
        """The newest so many tokens are gone; their slots go by `keep`."""

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""

    def state(self) -> dict[str, Tensor]:
        """What is held, as named tensors."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` of an equal scorer returned."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 0


class Allocator(ABC):
    """Which of the tokens that compete are kept, by their scores."""

    @abstractmethod
    def pick(self, scores: Tensor, competing: Tensor, room: Tensor) -> Tensor:
        """Bool `[B, Hkv, N]`, a part of what competes.

        Args:
            scores: float32 `[B, Hkv, N]`.
            competing: bool `[B, Hkv, N]`.
            room: int64 `[B]`, tokens to pick for each head, or on average where heads differ.
        """

    def worst(self, scores: Tensor) -> Tensor | None:  # noqa: ARG002
        """The same for all but one of `scores [B, Hkv, N]`: which goes, int64 `[B, Hkv]`.

        None where heads do not all pick as many.
        """
        return None


class Retention:
    """Keeps the sinks, the newest tokens, and what a picker picks of the rest by a scorer's scores."""

    def __init__(self, scorer: Scorer, picker: Allocator, policy: EvictionPolicy) -> None:
        self.scorer, self.picker, self.policy = scorer, picker, policy

    def wrap(self, wrapped: Callable[[Scorer], Scorer], *, followers: bool = False) -> None:  # noqa: ARG002
        """Choose by what is made of the scorer; with `followers` also where another layer chooses."""
        self.scorer = wrapped(self.scorer)

    def merge(self, storage: Storage, kept: Kept, chosen: Chosen) -> Merging | None:
        """What kept tokens take over of those that are dropped now; None is to forget these."""
        return self.scorer.merge(storage, kept, chosen, self.policy)

    def expect(self, steps: int) -> None:
        """The layer takes so many decode steps before the next layer takes any."""

    def choose(self, storage: Storage, kept: Kept) -> Chosen | None:
        """What is to be kept of what is; None is all of it."""
        limits = [self.policy.limit(context) for context in kept.context]
        if kept.slots <= min(limits):
            return None
        if not kept.ragged and {kept.slots - 1} == set(limits):
            chosen = self._all_but_one(storage, kept, limits[0])
            if chosen is not None:
                return chosen
        return self._best(storage, kept, limits)

    def _all_but_one(self, storage: Storage, kept: Kept, limit: int) -> Chosen | None:
        """Once full, each token that is generated makes one go: found at little cost."""
        begin, end = self.policy.sinks, kept.slots - self.policy.newest(limit)
        worst = self.scorer.worst(self.picker, storage, kept, begin, end)
        return None if worst is None else Chosen.without(worst + begin, kept.slots)

    def _best(self, storage: Storage, kept: Kept, limits: list[int]) -> Chosen:
        slots = torch.arange(kept.slots, device=kept.filling.device)
        begin = (kept.filling + self.policy.sinks).unsqueeze(-1)
        end = kept.slots - torch.tensor([self.policy.newest(limit) for limit in limits], device=slots.device)
        competing = (slots >= begin) & (slots < end.view(-1, 1, 1))
        always = kept.valid() & ~competing
        room = torch.tensor(limits, device=slots.device) - always.sum(-1).amax(-1)
        picked = self.scorer.pick(self.picker, storage, kept, competing, room.clamp(min=0))
        return Chosen(*packed_slots(always | picked))
