"""Keys and values in a form, on a tier.

Legend: B batch, H query heads, Hkv KV heads, N tokens, S slots, D and E size of keys and of values.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from keyhole.attention import Logits, Part, attend_slots, merge
from keyhole.core.layout import Regions
from keyhole.storage.base import Footprint, Lookups, Storage, in_turn
from keyhole.storage.chosen import Chosen
from keyhole.storage.formats.base import Form, Full, TokenSpec
from keyhole.storage.resident.blocks import ResidentBlocks
from keyhole.storage.resident.slots import ResidentSlots
from keyhole.storage.tiers.buffer import Buffer, GrowingBuffer

_PACKED = 4096  # tokens packed at a time, to bound temporary memory
_AS_THEY_ARE = Full()


class PlacedStorage(Storage):
    """Rows of a form in a buffer of a tier, perhaps with resident blocks in front.

    A form that packs groups of tokens leaves the newest as they are, on the device, at least a group of
    them. What is chosen on another device than the query's is gathered there and moved.
    """

    def __init__(
        self, form: Form, buffer: Buffer, resident: ResidentBlocks | ResidentSlots | None = None
    ) -> None:
        self.form, self.buffer, self.resident = form, buffer, resident
        self._recent = GrowingBuffer()
        self._kind: TokenSpec | None = None

    @property
    def length(self) -> int:
        return self._packed + self._recent.length

    @property
    def _packed(self) -> int:
        """Tokens in the buffer."""
        return self.buffer.length * self.form.group

    def append(self, keys: Tensor, values: Tensor) -> None:
        if self.length == 0:
            self._kind = TokenSpec(keys.shape[1], keys.shape[-1], values.shape[-1], keys.dtype, keys.device)
        tokens = torch.cat([keys, values], dim=-1)
        if self.form.in_place:
            self.buffer.append(tokens)
            return
        for part in tokens.split(_PACKED, dim=2):
            self._recent.append(part)
            self._pack_recent()

    def hold(self, kind: TokenSpec) -> None:
        """Go on behind rows that the buffer holds already, of tokens of a `kind`."""
        self._kind = kind

    def seal(self) -> None:
        """Pack whatever fills a row, the newest tokens too: what comes next does not change it."""
        count = self._recent.length // self.form.group * self.form.group
        if not self.form.in_place and count:
            tokens = self._recent.view()
            self.buffer.append(self.form.pack(tokens[:, :, :count], self._known()))
            self._recent = GrowingBuffer()
            self._recent.append(tokens[:, :, count:])

    def rows(self, start: int = 0) -> Tensor:
        """Rows of the buffer from row `start` on, `[B, H, n, W]`."""
        return self.buffer.view(start)

    def recent(self) -> Tensor:
        """Tokens behind the buffer's rows, keys beside values, `[B, H, T, D + E]`."""
        return self._recent.view()

    def keys(self, start: int = 0) -> Tensor:
        return self._tokens(start, "keys")

    def values(self, start: int = 0) -> Tensor:
        return self._tokens(start, "values")

    def picked(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Past resident blocks, which are for what is attended to."""
        keys, values = (self._picked(slots, name) for name in ("keys", "values"))
        return keys, values, in_turn(slots)

    def _picked(self, slots: Tensor, what: str) -> Tensor:
        kind = self._known()
        if self._recent.length:
            recent = (slots - self._packed).clamp(min=0)
            found = getattr(_AS_THEY_ARE, what)(self._recent.view(), kind, recent)
            if not self._packed:
                return found
        there = slots.clamp(max=self._packed - 1).to(self.buffer.view().device)
        rows = self.buffer.reading(there // self.form.group)
        packed = getattr(self.form, what)(rows, kind, there).to(kind.device, kind.dtype)
        if not self._recent.length:
            return packed
        return torch.where((slots < self._packed).unsqueeze(-1), packed, found)

    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        kind = self._known()
        sources = self._sources(Chosen.of(slots, counts, kind.heads))
        sources = [source for source in sources if source[2].counts.any()] or sources[:1]
        part = reduce(merge, (_attend(query, *source, kind, logits) for source in sources))
        if isinstance(self.resident, ResidentBlocks):
            self.resident.admit(self.buffer, kind.device)
        return part

    def settle(self, regions: Regions) -> None:  # noqa: ARG002
        if isinstance(self.resident, ResidentSlots):
            self.resident.begin()

    @property
    def token_bytes(self) -> float:
        kind = self._known()
        return self.form.token_bytes(kind) * kind.heads

    @property
    def lookups(self) -> Lookups:
        return Lookups() if self.resident is None else self.resident.lookups

    def crops_exactly(self, length: int) -> bool:
        """What was packed is not what it was before."""
        return self.form.lossless or self._packed == 0 or self._packed + self.form.group <= length

    def crop(self, length: int) -> None:
        if length > self._packed:
            self._recent.crop(length - self._packed)
            return
        group = self.form.group
        # A row is forgotten whole, so its tokens that stay are unpacked; the newest one is never in a row.
        kept = length if self.form.in_place else max(length - 1, 0) // group
        self._recent = GrowingBuffer()
        if kept * group < length:
            tokens = self._unpacked(self.buffer.view(kept)[:, :, :1])
            self._recent.append(tokens[:, :, : length - kept * group])
        self.buffer.crop(kept)
        if self.resident is not None:
            self.resident.crop(kept * group)

    def reorder(self, rows: Tensor) -> None:
        self.buffer.reorder(rows)
        self._recent.reorder(rows)
        if self.resident is not None:
            self.resident.clear()

    def state(self) -> dict[str, Tensor]:
        if self.length == 0:
            return {}
        if self.form.in_place:
            return {"keys": self.keys(), "values": self.values()}
        packed = {"rows": self.buffer.view()} if self.buffer.length else {}
        return packed | {"keys": self.keys(self._packed), "values": self.values(self._packed)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.crop(0)
        if not state:
            return
        self.append(state["keys"], state["values"])
        if "rows" in state:
            self.buffer.append(state["rows"])

    @property
    def footprint(self) -> Footprint:
        fast = self._recent.nbytes + (0 if self.resident is None else self.resident.nbytes)
        return Footprint(**{self.buffer.tier: self.buffer.nbytes}) + Footprint(device=fast)

    def _known(self) -> TokenSpec:
        if self._kind is None:
            raise ValueError("the storage is empty; append first")
        return self._kind

    def _pack_recent(self) -> None:
        """Pack all but the newest tokens, which are at least a group and fewer than two."""
        group = self.form.group
        count = (self._recent.length - group) // group * group
        if count <= 0:
            return
        tokens = self._recent.view()
        rows = self.form.pack(tokens[:, :, :count], self._known())
        self.buffer.append(rows)
        if isinstance(self.resident, ResidentSlots):
            self.resident.came(self.buffer.length - rows.shape[2], rows)
        # Anew, since its memory is that of a whole prompt by now.
        self._recent = GrowingBuffer()
        self._recent.append(tokens[:, :, count:])

    def _unpacked(self, rows: Tensor) -> Tensor:
        kind = self._known()
        tokens = torch.cat([self.form.keys(rows, kind), self.form.values(rows, kind)], dim=-1)
        return tokens.to(kind.device, kind.dtype)

    def _tokens(self, start: int, what: str) -> Tensor:
        kind, held = self._known(), []
        if start < self._packed or not self._recent.length:
            row = start // self.form.group
            rows = getattr(self.form, what)(self.buffer.view(row), kind)
            held.append(rows[:, :, start - row * self.form.group :].to(kind.device, kind.dtype))
        if self._recent.length:
            rows = getattr(_AS_THEY_ARE, what)(self._recent.view(), kind)
            held.append(rows[:, :, max(start - self._packed, 0) :])
        return held[0] if len(held) == 1 else torch.cat(held, dim=2)

    def _sources(self, chosen: Chosen) -> list[tuple[Form, Tensor, Chosen]]:
        """Where chosen slots are read: each a form, rows in it, and the slots among those rows."""
        sources: list[tuple[Form, Tensor, Chosen]] = []
        if self._recent.length:
            packed = chosen.slots < self._packed
            recent = Chosen(chosen.slots - self._packed, chosen.counts).where(~packed)
            sources.append((_AS_THEY_ARE, self._recent.view(), recent))
            chosen = chosen.where(packed)
        if isinstance(self.resident, ResidentSlots) and self.buffer.length:
            if chosen.counts.any() or not sources:
                sources.append((self.form, *self.resident.bring(chosen, self.buffer, self._known().device)))
            return sources
        if isinstance(self.resident, ResidentBlocks) and self.buffer.length:
            found, chosen = self.resident.look_up(chosen, self._packed)
            if self.resident.rows is not None:
                sources.append((self.form, self.resident.rows, found))
        if self.buffer.length:
            rows = self.buffer.reading(chosen.slots // self.form.group)
            sources.append((self.form, rows, chosen))
        return sources


def _attend(query: Tensor, form: Form, rows: Tensor, chosen: Chosen, kind: TokenSpec, logits: Logits) -> Part:
    """Attention of `query [B, H, D]` over chosen slots of `rows [B, Hkv, n, W]`, wherever they lie."""
    slots, counts = chosen.slots, chosen.counts
    if rows.device == query.device:
        return form.attend(query, rows, kind, slots, counts, logits)
    there = slots.to(rows.device)
    keys, values = (_moved(read(rows, kind, there), query.device) for read in (form.keys, form.values))
    places = torch.arange(slots.shape[-1], device=query.device).expand(slots.shape)
    return attend_slots(query, keys, values, places, counts, logits)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor if tensor.device == device else tensor.pin_memory().to(device, non_blocking=True)
