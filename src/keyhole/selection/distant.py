"""Votes on keys without their rotation, which all lie equally far back (TokenSelect as published).

Source: "TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic
Token-Level KV Cache Selection", arXiv 2411.02886.

Legend: B batch, Hkv KV heads, T tokens, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.core.casts import saturated
from keyhole.core.layout import Regions
from keyhole.core.rope import FixedDistance
from keyhole.selection.base import Selection, Step
from keyhole.selection.vote import Vote, VoteSelector
from keyhole.storage import CapturableStorage, DeviceStorage

_PIECE = 8192  # tokens whose rotation is taken off at a time, to bound temporary memory


class BareKeys(DeviceStorage):
    """Keys without their rotation, of the slots from `begin` on; there are no values beside them."""

    def __init__(self, scoring: FixedDistance, padding: Tensor, begin: int = 0) -> None:
        super().__init__()
        self.scoring, self.padding, self.begin = scoring, padding, begin  # padding is int64 `[B]`

    def add(self, keys: Tensor) -> None:
        """Add `keys [B, Hkv, T, D]` as they are cached."""
        for part in keys.split(_PIECE, dim=2):
            begin = self.begin + self.length
            slots = torch.arange(begin, begin + part.shape[2], device=part.device)
            self.take(without_rotation(self.scoring, part, slots, self.padding))

    def place(self, key: Tensor, slot: Tensor) -> None:
        """Write `key [B, Hkv, 1, D]`, as it is cached, at a new slot, int64 `[1]`."""
        bare = without_rotation(self.scoring, key, slot, self.padding)
        self.put(bare, bare[..., :0], slot)

    def take(self, bare: Tensor) -> None:
        """Add keys that have no rotation any more."""
        self.append(bare, bare[..., :0])

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.padding = self.padding.index_select(0, rows.to(self.padding.device))


def without_rotation(scoring: FixedDistance, keys: Tensor, slots: Tensor, padding: Tensor) -> Tensor:
    """`keys [B, Hkv, T, D]` of `slots [T]` as they were before RoPE, in their own dtype."""
    return saturated(scoring.keys(keys, slots, padding), keys.dtype)


class DistantVoteSelector(VoteSelector):
    """Elects by keys without their rotation, of which it holds a copy.

    So no distance is beyond what a model was trained at, and none counts. Attention is over the keys as they
    are cached.
    """

    def __init__(self, vote: Vote, scoring: FixedDistance, reuse: float | None = None) -> None:
        super().__init__(vote, reuse)
        self.scoring = scoring
        self._bare: BareKeys | None = None

    def build(self, keys: Tensor, regions: Regions) -> None:
        super().build(keys, regions)
        self._bare = BareKeys(self.scoring, torch.tensor(regions.padding, device=keys.device))
        self._bare.add(keys)

    def append(self, keys: Tensor) -> None:
        super().append(keys)
        self._known().add(keys)

    def select(self, step: Step) -> Selection:
        bare = self._known()
        query = self.scoring.query(step.query, step.regions.ends - 1, bare.padding)
        return super().select(step._replace(query=query.to(step.query.dtype), storage=bare))

    def reserve(self, tokens: int) -> None:
        self._known().reserve(tokens)
        self._known().extend(tokens)

    def place(self, storage: CapturableStorage, slot: Tensor) -> None:
        self._known().place(storage.keys_at(slot), slot)

    def release(self, length: int) -> None:
        super().release(length)
        self._known().crop(length)

    def crop(self, length: int) -> None:
        super().crop(length)
        if self._bare is not None:
            self._bare.crop(length)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        if self._bare is not None:
            self._bare.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        if self._bare is None or not self.length:
            return {}
        return super().state() | {"bare": self._bare.keys(), "padding": self._bare.padding}

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        fields = dict(state)
        bare, padding = fields.pop("bare", None), fields.pop("padding", None)
        super().restore(fields, length)
        self._bare = None
        if bare is not None and padding is not None:
            self._bare = BareKeys(self.scoring, padding)
            self._bare.take(bare)

    @property
    def nbytes(self) -> int:
        return 0 if self._bare is None else self._bare.footprint.device

    def _known(self) -> BareKeys:
        if self._bare is None:
            raise ValueError("nothing is indexed yet; call build first")
        return self._bare
