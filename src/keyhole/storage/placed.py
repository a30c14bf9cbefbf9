"""Keys and values in a form, on a tier.

Legend: B batch, H query heads, Hkv KV heads, N tokens, S slots, D and E size of keys and of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.attention import Logits, Part, add_sink_logits
from keyhole.core.layout import Regions
from keyhole.storage.base import Footprint, Lookups, Storage, in_turn
from keyhole.storage.chosen import Chosen
from keyhole.storage.formats.base import Form, Full, TokenSpec
from keyhole.storage.resident.blocks import ResidentBlocks
from keyhole.storage.resident.slots import ResidentSlots
from keyhole.storage.sources import Source, attend_sources
from keyhole.storage.tiers.buffer import Buffer
from keyhole.storage.whole import WholeTokens

_PACKED = 4096  # tokens packed at a time, to bound temporary memory
_AS_THEY_ARE = Full()


class PlacedStorage(Storage):
    """Rows of a form in a buffer of a tier, perhaps with resident blocks in front.

    A form that packs groups of tokens leaves the newest as they are, on the device, at least a group of
    them, and the first ones if it says so. What is chosen on another device than the query's is gathered
    there and moved.
    """

    def __init__(
        self, form: Form, buffer: Buffer, resident: ResidentBlocks | ResidentSlots | None = None
    ) -> None:
        self.form, self.buffer, self.resident = form, buffer, resident
        self._whole = WholeTokens(form.first)
        self._kind: TokenSpec | None = None

    @property
    def length(self) -> int:
        return self._packed + self._whole.newest

    @property
    def _packed(self) -> int:
        """Tokens in the buffer."""
        return self.buffer.length * self.form.group

    def append(self, keys: Tensor, values: Tensor) -> None:
        if self.length == 0:
            self._kind = TokenSpec.of(keys, values)
        tokens = torch.cat([keys, values], dim=-1)
        if self.form.in_place:
            self.buffer.append(tokens)
            return
        for part in tokens.split(_PACKED, dim=2):
            self._whole.append(part)
            self._pack_recent()

    def hold(self, kind: TokenSpec, first: Tensor) -> None:
        """Go on behind rows that the buffer has, of tokens of a `kind`, with the `first` ones whole."""
        self._kind = kind
        self._whole.put(first, first[:, :, :0])

    def seal(self) -> None:
        """Pack whatever fills a row, the newest tokens too: what comes next does not change it."""
        count = self._whole.newest // self.form.group * self.form.group
        if not self.form.in_place and count:
            self.buffer.append(self.form.pack(self._whole.take(count), self._known()))

    def rows(self, start: int = 0) -> Tensor:
        """Rows of the buffer from row `start` on, `[B, H, n, W]`."""
        return self.buffer.view(start)

    def recent(self) -> Tensor:
        """Tokens behind the buffer's rows, keys beside values, `[B, H, T, D + E]`."""
        return self._whole.view_newest()

    def first(self) -> Tensor:
        """The first tokens of the text, where rows of the buffer do not have them, as `recent`."""
        return self._whole.view_first()

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
        places, here = self._whole.places(slots, self._packed)
        if self._whole.length:
            places = places.clamp(min=0, max=self._whole.length - 1)
            found = getattr(_AS_THEY_ARE, what)(self._whole.view(), kind, places)
            if not self._packed:
                return found
        there = slots.clamp(max=self._packed - 1).to(self.buffer.view().device)
        rows = self.buffer.reading(there // self.form.group)
        packed = getattr(self.form, what)(rows, kind, there).to(kind.device, kind.dtype)
        if not self._whole.length:
            return packed
        return torch.where(here.unsqueeze(-1), found, packed)

    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        kind = self._known()
        part = attend_sources(query, self._sources(Chosen.of(slots, counts, kind.heads)), kind, logits)
        if isinstance(self.resident, ResidentBlocks):
            self.resident.admit(self.buffer, kind.device)
        return part

    def attend_all(self, query: Tensor, logits: Logits, mask: Tensor | None) -> Tensor:
        if self.form.lossless or not self.buffer.length:
            return super().attend_all(query, logits, mask)
        part = attend_sources(query.squeeze(2), self._everything(len(query), mask), self._known(), logits)
        return add_sink_logits(part, logits).out.unsqueeze(2)

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
            self._whole.crop(length - self._packed)
            return
        group = self.form.group
        kept = length if self.form.in_place else max(length - 1, 0) // group
        if length == 0:
            self._whole = WholeTokens(self.form.first)
        elif not self.form.in_place:
            self._unpack_row(kept, length - kept * group)
        self.buffer.crop(kept)
        if self.resident is not None:
            self.resident.crop(kept * group)

    def reorder(self, rows: Tensor) -> None:
        self.buffer.reorder(rows)
        self._whole.reorder(rows)
        if self.resident is not None:
            self.resident.clear()

    def state(self) -> dict[str, Tensor]:
        if self.length == 0:
            return {}
        if self.form.in_place:
            return {"keys": self.keys(), "values": self.values()}
        packed = {"rows": self.buffer.view()} if self.buffer.length else {}
        keys, values = self._whole.view().split([self._known().keys, self._known().values], dim=-1)
        return packed | {"keys": keys, "values": values}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.crop(0)
        if not state:
            return
        keys, values = state["keys"], state["values"]
        if "rows" not in state:
            self.append(keys, values)
            return
        self.buffer.append(state["rows"])
        tokens, most = torch.cat([keys, values], dim=-1), self.form.first
        self.hold(TokenSpec.of(keys, values), tokens[:, :, :most])
        self._whole.append(tokens[:, :, most:])

    @property
    def footprint(self) -> Footprint:
        fast = self._whole.nbytes + (0 if self.resident is None else self.resident.nbytes)
        return Footprint(**{self.buffer.tier: self.buffer.nbytes}) + Footprint(device=fast)

    def _known(self) -> TokenSpec:
        if self._kind is None:
            raise ValueError("the storage is empty; append first")
        return self._kind

    def _pack_recent(self) -> None:
        """Pack all but the newest tokens, which are at least a group and fewer than two."""
        group = self.form.group
        count = (self._whole.newest - group) // group * group
        if count <= 0:
            return
        rows = self.form.pack(self._whole.take(count), self._known())
        self.buffer.append(rows)
        if isinstance(self.resident, ResidentSlots):
            self.resident.came(self.buffer.length - rows.shape[2], rows)

    def _unpack_row(self, row: int, count: int) -> None:
        """Have the first `count` tokens of a row among the newest, as rows from it on are forgotten."""
        kind, rows = self._known(), self.buffer.view(row)[:, :, :1]
        tokens = torch.cat([self.form.keys(rows, kind), self.form.values(rows, kind)], dim=-1)
        tokens = tokens.to(kind.device, kind.dtype)[:, :, :count]
        first = self._whole.view_first() if self._whole.first else tokens[:, :, :0]
        if row:
            self._whole.put(first, tokens)
        else:
            self._whole.put(None, torch.cat([first, tokens[:, :, first.shape[2] :]], dim=2)[:, :, :count])

    def _tokens(self, start: int, what: str) -> Tensor:
        kind, held = self._known(), []
        if start < self._whole.first:
            held.append(getattr(_AS_THEY_ARE, what)(self.first()[:, :, start:], kind))
        packed = max(start, self._whole.first)
        if packed < self._packed or not self._whole.newest:
            row = packed // self.form.group
            rows = getattr(self.form, what)(self.buffer.view(row), kind)
            held.append(rows[:, :, packed - row * self.form.group :].to(kind.device, kind.dtype))
        if self._whole.newest:
            rows = getattr(_AS_THEY_ARE, what)(self.recent(), kind)
            held.append(rows[:, :, max(start - self._packed, 0) :])
        return held[0] if len(held) == 1 else torch.cat(held, dim=2)

    def _everything(self, batch: int, mask: Tensor | None) -> list[Source]:
        """All slots, or those a mask `[B or 1, 1 or Hkv, 1, length]` shows, read without unpacking rows."""
        heads, first, packed = self._known().heads, self._whole.first, self._packed
        whole = Chosen.range(0, self._whole.length, batch, heads, self.device)
        rows = Chosen.range(first, packed, batch, heads, self.device)
        if mask is not None:
            shown = mask.squeeze(2).expand(batch, heads, -1)
            whole = whole.where(torch.cat([shown[..., :first], shown[..., packed:]], dim=-1))
            rows = rows.where(shown[..., first:packed])
        return [Source(_AS_THEY_ARE, self._whole.view(), whole), Source(self.form, self.buffer.view(), rows)]

    def _sources(self, chosen: Chosen) -> list[Source]:
        """Where chosen slots are read."""
        sources: list[Source] = []
        if self._whole.length:
            whole, chosen = self._whole.split(chosen, self._packed)
            sources.append(Source(_AS_THEY_ARE, self._whole.view(), whole))
        if isinstance(self.resident, ResidentSlots) and self.buffer.length:
            if chosen.counts.any() or not sources:
                sources.append(
                    Source(self.form, *self.resident.bring(chosen, self.buffer, self._known().device))
                )
            return sources
        if isinstance(self.resident, ResidentBlocks) and self.buffer.length:
            found, chosen = self.resident.look_up(chosen, self._packed)
            if self.resident.rows is not None:
                sources.append(Source(self.form, self.resident.rows, found))
        if self.buffer.length:
            rows = self.buffer.reading(chosen.slots // self.form.group)
            sources.append(Source(self.form, rows, chosen))
        return sources
