"""Keys as coefficients in a basis of low rank, rebuilt where they are read (ShadowKV).

Source: "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference", arXiv 2410.21465.

Legend: B batch, H query heads, Hkv KV heads, N tokens, S slots, D head size, R rank.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.attention import Logits, Part, attend_slots
from keyhole.core.casts import saturated
from keyhole.core.layout import Regions, packed_slots
from keyhole.core.rope import Rope
from keyhole.core.scales import scales_of
from keyhole.kernels.backend.dispatch import at_hand
from keyhole.storage.base import CapturableStorage, Footprint, Lookups, in_turn
from keyhole.storage.basis import Basis, default_rank, fit_basis
from keyhole.storage.chosen import Chosen
from keyhole.storage.chunks import default_chunk, outlier_chunks, pieces
from keyhole.storage.formats.base import at
from keyhole.storage.resident.fetched import FetchedRows
from keyhole.storage.resident.keys import KeysBySlot
from keyhole.storage.resident.rows import ResidentRows
from keyhole.storage.tiers.buffer import GrowingBuffer

_LOG = logging.getLogger(__name__)

_PIECE = 8192  # tokens compressed or rebuilt at a time, to bound temporary memory
_BATCH = 64  # tokens that leave the window wait until there are so many
_TOKENS_PER_AXIS = 2  # a prompt shorter than that says too little about what is to come


@cache
def _warn_in_vain(rank: int, width: int, enough: int) -> None:
    """Once, and not for each layer of each request."""
    _LOG.warning(
        "rank=%d of the %d numbers that a key has in all heads may hold more than whole keys do, "
        "with landmarks, basis and rebuilt keys beside; give rank=%d or less, or leave it out",
        rank,
        width,
        enough,
    )


class LowRankStorage(CapturableStorage):
    """Full values on any tier; keys that left the window as `R` numbers for all heads together.

    The basis is that of the prompt, fitted when a selective step first asks, and generated tokens are kept in
    it too. Keys of sinks, of outlier chunks and of the newest tokens stay as they are. The keys rebuilt for a
    step stay until the next one that rebuilds some, which finds those it has in common; a GPU rebuilds all.

    Args:
        rope: the layer's rotation; keys are compressed without it.
        rank: R; at most Hkv * D are taken, which lose nothing. None is `default_rank` of the keys.
        chunk: slots of a chunk; None is `default_chunk` of them.
        outliers: chunks of the prompt whose keys stay as they are, for each KV head.
        values: where values go; None keeps them on the device.
    """

    def __init__(
        self,
        rope: Rope,
        *,
        rank: int | None,
        chunk: int | None,
        outliers: int,
        values: FetchedRows | ResidentRows | None = None,
    ) -> None:
        self.rope, self.rank, self.chunk, self.outliers = rope, rank, chunk, outliers
        self._values = values or FetchedRows(GrowingBuffer())
        self._hits = self._misses = 0
        self._clear()

    def _clear(self) -> None:
        self._recent = GrowingBuffer()  # keys as they came, of the slots behind those of the coefficients
        self._coefficients = GrowingBuffer()  # `[B, 1, N, R]`
        self._basis: Basis | None = None
        self._turning: kernels.RotaryFrequencies | None = None  # the rotation, where a kernel can do it
        self._exact: KeysBySlot | None = None
        self._rebuilt: KeysBySlot | None = None
        self._padding = torch.empty(0)  # int64 `[B]`

    @property
    def length(self) -> int:
        return self._values.length

    @property
    def _settled(self) -> int:
        """Slots whose keys are coefficients."""
        return self._coefficients.length

    def append(self, keys: Tensor, values: Tensor) -> None:
        if self.length == 0:
            self._clear()
        self._recent.append(keys)
        self._values.append(values)

    def keys(self, start: int = 0) -> Tensor:
        recent = self._recent.view()[:, :, max(start - self._settled, 0) :]
        if start >= self._settled:
            return recent
        slots = torch.arange(start, self._settled, device=recent.device)
        parts = [self._settled_keys(part.expand(*recent.shape[:2], -1)) for part in slots.split(_PIECE)]
        return torch.cat([*parts, recent], dim=2)

    def values(self, start: int = 0) -> Tensor:
        return self._values.view(start)

    def picked(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        counts = torch.full(slots.shape[:2], slots.shape[2], dtype=torch.int32, device=slots.device)
        chosen = Chosen(slots.int(), counts)
        keys = at(self._recent.view(), slots) if self._basis is None else self._all_rebuilt(slots.long())
        return keys, self._values.fetch(chosen), in_turn(slots)

    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        chosen = Chosen.of(slots, counts, self._recent.view().shape[1])
        keys = at(self._recent.view(), chosen.slots) if self._basis is None else self._chosen_keys(chosen)
        places = torch.arange(slots.shape[-1], device=slots.device).expand(chosen.slots.shape)
        return attend_slots(query, keys, self._values.fetch(chosen), places, chosen.counts, logits)

    @property
    def token_bytes(self) -> float:
        """A row of coefficients is read for each KV head, since heads choose for themselves."""
        value = self.values(self.length - 1)[0]
        if self._basis is None:
            return value.nbytes + self.keys(self.length - 1)[0].nbytes
        return value.nbytes + len(value) * self._coefficients.view()[0, 0, :1].nbytes

    @property
    def lookups(self) -> Lookups:
        """Values that were at hand before a slower tier, and others; where none can be, keys that an earlier
        step had rebuilt, and keys that had to be, which are not counted on a GPU.
        """
        lookups = self._values.lookups
        return Lookups(self._hits, self._misses) if lookups is None else lookups

    def settle(self, regions: Regions) -> None:
        waiting = regions.last - self._settled
        if self._basis is None:
            if waiting <= 0 or not self._tells_enough(regions.last - max(regions.padding)):
                return
            self._fit(regions)
        elif waiting < _BATCH:
            return
        self._compress(waiting)

    @property
    def varying(self) -> str:
        values = self._values
        here = isinstance(values, FetchedRows) and values.resident is None and values.buffer.tier == "device"
        return "" if here else "its values are fetched from another tier"

    def reserve(self, tokens: int) -> None:
        self._recent.reserve(tokens - self._settled)
        self._device_values.reserve(tokens)

    def extend(self, length: int) -> None:
        self._recent.extend(length - self._settled)
        self._device_values.extend(length)

    def put(self, keys: Tensor, values: Tensor, slot: Tensor) -> None:
        self._recent.put(keys, slot - self._settled)
        self._device_values.put(values, slot)

    def keys_at(self, slots: Tensor) -> Tensor:
        return self._recent.view().index_select(2, (slots - self._settled).clamp(min=0))

    def crop(self, length: int) -> None:
        if 0 < length < self._settled:
            self._crop_settled(length)
        self._values.crop(length)
        self._recent.crop(max(length - self._settled, 0))
        if length == 0:
            self._clear()

    def _crop_settled(self, length: int) -> None:
        """Forget coefficients; the basis goes, too, where little is left of the text that it is of.

        What follows may be another text then, and the basis is fitted again when it is there.
        """
        if self._tells_enough(length - int(self._padding.max())):
            newest = self.keys(length - 1)[:, :, :1]
            # The newest token is never among them.
            self._coefficients.crop(length - 1)
            self._recent.crop(0)
            self._recent.append(newest)
            self._exact = None if self._exact is None else self._exact.crop(length)
            self._rebuilt = None
            return
        keys = self.keys()[:, :, :length]
        self._clear()
        self._recent.append(keys)

    def reorder(self, rows: Tensor) -> None:
        if self.length == 0:
            return
        rows = rows.to(self._recent.view().device)
        for buffer in (self._values, self._recent, self._coefficients):
            buffer.reorder(rows)
        if self._basis is not None:
            self._basis, self._padding = self._basis.reorder(rows), self._padding.index_select(0, rows)
            self._exact = None if self._exact is None else self._exact.reorder(rows)
            self._rebuilt = None if self._rebuilt is None else self._rebuilt.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        if self.length == 0:
            return {}
        held = {"values": self.values(), "recent": self._recent.view()}
        if self._basis is None or self._exact is None:
            return held
        held |= {"coefficients": self._coefficients.view(), "padding": self._padding}
        held |= {"mean": self._basis.mean, "axes": self._basis.axes}
        return held | {"exact_slots": self._exact.slots, "exact_keys": self._exact.keys}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._values.crop(0)
        self._clear()
        if not state:
            return
        self.append(state["recent"], state["values"])
        if "coefficients" in state:
            self._coefficients.append(state["coefficients"])
            self._padding = state["padding"]
            self._take(Basis(state["mean"], state["axes"]))
            self._exact = KeysBySlot(state["exact_slots"], state["exact_keys"])

    @property
    def footprint(self) -> Footprint:
        kept = [kept.nbytes for kept in (self._exact, self._rebuilt) if kept is not None]
        basis = () if self._basis is None else (tensor.nbytes for tensor in self._basis)
        buffers = (buffer.nbytes for buffer in (self._recent, self._coefficients))
        return self._values.footprint + Footprint(device=sum([*kept, *basis, *buffers]))

    @property
    def _device_values(self) -> GrowingBuffer:
        assert isinstance(self._values, FetchedRows)
        assert isinstance(self._values.buffer, GrowingBuffer)
        return self._values.buffer

    def _tells_enough(self, shortest: int) -> bool:
        """Whether the shortest row does, for each has a basis of its own; any does where no rank is lost."""
        _, heads, _, size = self._recent.view().shape
        rank = self._rank
        return heads * size <= rank or shortest >= _TOKENS_PER_AXIS * rank

    @property
    def _rank(self) -> int:
        _, heads, _, size = self._recent.view().shape
        return default_rank(heads, size) if self.rank is None else self.rank

    def _fit(self, regions: Regions) -> None:
        keys = self._recent.view()[:, :, : regions.last]
        self._padding = torch.tensor(regions.padding, device=keys.device)
        self.chunk = self.chunk or default_chunk(keys.shape[-1])
        rank = min(self._rank, keys.shape[1] * keys.shape[3])
        width = keys.shape[1] * keys.shape[3]
        if 2 * rank > width:
            _warn_in_vain(rank, width, default_rank(keys.shape[1], keys.shape[3]))
        parts = [part.abs().amax((1, 2, 3)) for _, part in pieces(keys, self.chunk)]
        largest = torch.stack(parts).amax(0).float()
        scales = scales_of(largest.view(-1, 1, 1))
        counted = (
            (self._unrotated(part, start), self._slots(start, part) >= regions.first.unsqueeze(1))
            for start, part in pieces(keys, self.chunk)
        )
        self._take(fit_basis(counted, rank, scales).within(largest, keys.dtype))
        slots, counts = packed_slots(self._kept_exact(keys, regions))
        self._exact = KeysBySlot.of(slots, counts, at(keys, slots))

    def _take(self, basis: Basis) -> None:
        self._basis, self._turning = basis, self.rope.turning(basis.axes.shape[2], basis.axes.device)

    def _kept_exact(self, keys: Tensor, regions: Regions) -> Tensor:
        """Sinks and outlier chunks, bool `[B, Hkv, N]`."""
        assert self.chunk is not None
        slots, first = self._slots(0, keys), regions.first.unsqueeze(1)
        sinks = (slots >= self._padding.unsqueeze(1)) & (slots < first)
        apart = outlier_chunks(keys, regions, self.chunk, self.outliers)
        among = ((slots // self.chunk).view(1, 1, -1, 1) == apart.unsqueeze(2)).any(-1)
        return sinks.unsqueeze(1) | (among & (slots >= first).unsqueeze(1))

    def _compress(self, count: int) -> None:
        """Turn the first `count` of the recent keys to coefficients."""
        keys = self._recent.view()
        for part in keys[:, :, :count].split(_PIECE, dim=2):
            rows = self._known().project(self._unrotated(part, self._settled))
            self._coefficients.append(saturated(rows, keys.dtype))
        # Anew, since its memory is that of a whole prompt by now.
        self._recent = GrowingBuffer()
        self._recent.append(keys[:, :, count:])

    def _chosen_keys(self, chosen: Chosen) -> Tensor:
        """The keys `[B, Hkv, S, D]` of what was chosen, of filling any."""
        return self._looked_up(chosen) if at_hand(chosen.slots) else self._all_rebuilt(chosen.slots.long())

    def _all_rebuilt(self, slots: Tensor) -> Tensor:
        """On a GPU, which would have to be waited for to know what need not be; nothing is kept there."""
        settled = self._settled_keys(slots.clamp(max=self._settled - 1))
        recent = at(self._recent.view(), (slots - self._settled).clamp(min=0))
        return torch.where((slots < self._settled).unsqueeze(-1), settled, recent)

    def _looked_up(self, chosen: Chosen) -> Tensor:
        slots, meant = chosen.slots.long(), chosen.valid_mask()
        keys = at(self._recent.view(), (slots - self._settled).clamp(min=0))
        known = ~meant | (slots >= self._settled)
        for kept in (self._exact, self._rebuilt):
            if kept is None:
                continue
            there, found = kept.find(slots)
            found = found & ~known
            keys = torch.where(found.unsqueeze(-1), there, keys)
            known = known | found
            self._hits += int(found.sum()) if kept is self._rebuilt else 0
        missing = chosen.where(~known)
        self._misses += int(missing.counts.sum())
        if missing.counts.any():
            # Filling may be any slot.
            slots_missing = missing.slots.long().clamp(max=self._settled - 1)
            keys[~known] = self._rebuild(slots_missing)[missing.valid_mask()]
            settled = (meant & (slots < self._settled)).sum(-1)
            self._rebuilt = KeysBySlot.of(slots, settled, keys)
        return keys

    def _settled_keys(self, slots: Tensor) -> Tensor:
        keys, exact = self._rebuild(slots), self._exact
        if exact is None:
            return keys
        there, found = exact.find(slots)
        return torch.where(found.unsqueeze(-1), there, keys)

    def _rebuild(self, slots: Tensor) -> Tensor:
        """Keys `[B, Hkv, S, D]` of `slots [B, Hkv, S]` from their coefficients, at their positions."""
        coefficients, basis = self._coefficients.view(), self._known()
        if self._turning is not None:
            operands = coefficients.squeeze(1), basis.axes, basis.mean, slots, self._padding
            return saturated(kernels.rebuild_keys(*operands, self._turning), coefficients.dtype)
        keys = basis.rebuild(at(coefficients.expand(-1, slots.shape[1], -1, -1), slots))
        positions = slots - self._padding.view(-1, 1, 1)
        return saturated(self.rope.rotate_each(keys, positions), coefficients.dtype)

    def _unrotated(self, keys: Tensor, start: int) -> Tensor:
        return self.rope.unrotate(keys, self._slots(start, keys) - self._padding.unsqueeze(1))

    @staticmethod
    def _slots(start: int, keys: Tensor) -> Tensor:
        return torch.arange(start, start + keys.shape[2], device=keys.device)

    def _known(self) -> Basis:
        if self._basis is None:
            raise ValueError("the keys are not compressed; call settle first")
        return self._basis
