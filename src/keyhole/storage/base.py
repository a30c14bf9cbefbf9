"""Place: where kept keys and values live."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.attention import Logits, Part, dense_attention, key_logits, merge
from keyhole.core.layout import Regions
from keyhole.core.needs import Informed
from keyhole.core.scales import all_finite
from keyhole.kernels.backend.rows import at
from keyhole.storage.chosen import Chosen
from keyhole.storage.merging import Merging


def in_turn(slots: Tensor) -> Tensor:
    """Places of rows that were gathered for `slots [B, Hkv, S]`."""
    return torch.arange(slots.shape[-1], device=slots.device, dtype=slots.dtype).expand(slots.shape)


class Footprint(NamedTuple):
    """Bytes held on each tier."""

    device: int = 0
    host: int = 0
    disk: int = 0

    def __add__(self, other: Footprint) -> Footprint:  # type: ignore[override]
        return Footprint(*(a + b for a, b in zip(self, other, strict=True)))


class Lookups(NamedTuple):
    """Tokens that were read from resident blocks of a slower tier, and past them.

    Attributes:
        fetched: bytes of a slower tier that were read for that, as far as `ResidentSlots` count them.
        blocks: read by steps that another one came before, likewise.
        again: of those, blocks that the step before had read.
    """

    hits: int = 0
    misses: int = 0
    fetched: int = 0
    blocks: int = 0
    again: int = 0


class Storage(Informed, ABC):
    """Keys and values of one layer, addressed by token slot: slot t is the t-th token kept."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens held."""

    @abstractmethod
    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add `keys [B, Hkv, T, D]` (after RoPE) and `values [B, Hkv, T, Dv]`."""

    def append_finite(self, keys: Tensor, values: Tensor) -> bool:
        """`append`, unless NaN or infinity is among them: then nothing changes, and it returns False."""
        if not (all_finite(keys) and all_finite(values)):
            return False
        self.append(keys, values)
        return True

    @property
    def device(self) -> torch.device:
        """Where keys come from and go to; ValueError where nothing was appended yet."""
        return self.keys(self.length - 1).device

    @property
    def heads(self) -> int:
        """Hkv; ValueError where nothing was appended yet."""
        return self.keys(self.length - 1).shape[1]

    @abstractmethod
    def keys(self, start: int = 0) -> Tensor:
        """Keys from slot `start` on, `[B, Hkv, length - start, D]`: a view where they are stored so."""

    @abstractmethod
    def values(self, start: int = 0) -> Tensor:
        """Values from slot `start` on, as `keys`."""

    def picked(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values of `slots [B, Hkv, S]`, as `attend` reads them.

        Returns:
            Keys `[B, Hkv, n, D]`, values `[B, Hkv, n, Dv]`, and where in them the slots are, as `slots`.
        """
        return at(self.keys(), slots), at(self.values(), slots), in_turn(slots)

    @abstractmethod
    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        """Exact attention of `query [B, H, D]` over chosen slots.

        Args:
            slots: int32 `[B, S]`, the same for all heads, or `[B, Hkv, S]`.
            counts: int32 `[B]` or `[B, Hkv]`, how many of a row's slots are meant.

        Returns:
            The part, out `[B, H, Dv]` and lse `[B, H]`.
        """

    def attend_beside(self, part: Part, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        """As `attend`, and over what a `part` was computed of, which are other slots."""
        return merge(part, self.attend(query, slots, counts, logits))

    def attend_all(self, query: Tensor, logits: Logits, mask: Tensor | None) -> Tensor:
        """Attention of one `query [B, H, 1, D]`, sink logits included, over all slots; `[B, H, 1, Dv]`.

        Args:
            mask: bool `[B or 1, 1 or Hkv, 1, length]`, true where it may look; None is everywhere.
        """
        return dense_attention(query, self.keys(), self.values(), mask=mask, **logits._asdict())

    def scores(self, query: Tensor, logits: Logits) -> Tensor:
        """Logits of all that is stored, float32 `[B, Hkv, G, length]`, of `query [B, H, D]`."""
        return key_logits(query, self.keys(), logits)

    def pooled(
        self,
        query: Tensor,
        span: kernels.Span,
        how: kernels.Pooling,
        *,
        score_extra: Tensor | None = None,
        share_extra: Tensor | None = None,
    ) -> kernels.Pooled:
        """Attention weights of `query [B, H, D]` by pages, as `kernels.pooled_attention` over all keys."""
        return kernels.pooled_attention(
            query, self.keys(), span, how, score_extra=score_extra, share_extra=share_extra
        )

    def weigh_all(self, query: Tensor, logits: Logits, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """`attend_all`, and the logits float32 `[B, H, length]`, -inf where it may not look."""
        weights = self.scores(query.squeeze(2), logits).flatten(1, 2)
        if mask is not None:
            seen = mask.squeeze(2).repeat_interleave(query.shape[1] // mask.shape[1], dim=1)
            weights = weights.masked_fill(~seen, -torch.inf)
        return self.attend_all(query, logits, mask), weights

    @property
    @abstractmethod
    def token_bytes(self) -> float:
        """Bytes of one token's keys and values, all KV heads of a batch row."""

    @property
    def lookups(self) -> Lookups:
        """Reads counted by a block cache; none without one."""
        return Lookups()

    def settle(self, regions: Regions) -> None:
        """Called before each selective step: what is before `regions.last` is from now on read in parts."""

    @abstractmethod
    def crop(self, length: int) -> None:
        """Forget every slot from `length` on."""

    def keep(self, kept: Chosen, into: Merging | None = None) -> None:
        """Forget all but `kept`, whose slots ascend for each KV head; what is left is numbered from 0.

        The newest token stays the last slot of every head, so heads that keep fewer get filling first:
        finite keys and values without meaning. With `into`, kept rows change before.
        """
        keys, values = self.keys(), self.values()
        if into is not None:
            keys, values = into.merged(keys) if into.keys else keys, into.merged(values)
        slots = kept.aligned().clamp(min=0).long().unsqueeze(-1)
        keys, values = (
            held.gather(2, slots.expand(*slots.shape[:3], held.shape[3])) for held in (keys, values)
        )
        self.crop(0)
        self.append(keys, values)

    @abstractmethod
    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""

    def state(self) -> dict[str, Tensor]:
        """What is held, as named tensors; views where possible."""
        return {"keys": self.keys(), "values": self.values()} if self.length else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` of an equal storage returned, forgetting what was here."""
        self.crop(0)
        if state:
            self.append(state["keys"], state["values"])

    @property
    @abstractmethod
    def footprint(self) -> Footprint:
        """Bytes held, by tier."""


class CapturableStorage(Storage):
    """A storage for decode steps of fixed size, see `keyhole.cache.captured`.

    In these `attend` does not wait for a GPU, and `settle` is not called: tokens stay as they came.
    """

    @property
    def varying(self) -> str:
        """What of this one has no fixed size, for all that; empty if all has."""
        return ""

    @abstractmethod
    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens in all, so that they stay where they are when more come."""

    @abstractmethod
    def extend(self, length: int) -> None:
        """Hold so many tokens in all, in memory that was reserved; the new ones are `put` there."""

    @abstractmethod
    def put(self, keys: Tensor, values: Tensor, slot: Tensor) -> None:
        """Write `keys [B, Hkv, 1, D]` and `values [B, Hkv, 1, Dv]` at a new slot, int64 `[1]`."""

    @abstractmethod
    def keys_at(self, slots: Tensor) -> Tensor:
        """Keys `[B, Hkv, S, D]` of int64 `slots [S]`, any for those that are no longer as they came."""
