"""Keys and values of which each head keeps its own, in one pool of rows whose memory is given back.

Legend: B batch, H query heads, Hkv KV heads, N slots, R rows of the pool, D and E size of keys and of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.attention import Logits, Part, add_sink_logits
from keyhole.storage.base import Footprint, Storage
from keyhole.storage.chosen import ROOM, Chosen, kept_rows
from keyhole.storage.merging import Merging
from keyhole.storage.tiers.buffer import GrowingBuffer
from keyhole.storage.tiers.memory import empty

_GROWTH = 1.25
_SCATTERED = 8  # the pool is packed when one row in so many has been freed


class PooledStorage(Storage):
    """A token is a row of the pool for each KV head; a table gives the row of a slot.

    Heads may keep different numbers of tokens: filling has no row. Freed rows are used again, and the pool is
    packed, in the order of slots, when an eighth of it was freed, so that memory falls and reads stay
    contiguous.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._keys, self._values = torch.empty(0, 0), torch.empty(0, 0)  # `[R, D]`, `[R, E]`
        self._table = GrowingBuffer(ROOM)  # int32 `[B, Hkv, N, 1]`, -1 for filling
        self._free = torch.empty(0, dtype=torch.int32)
        self._used = 0  # rows from here on were never used
        self._freed = 0  # rows since the pool was last packed
        self._filling = torch.zeros(0)  # int64 `[B, Hkv]`, slots without a row that each head begins with
        self._ordered = True  # row r is slot r % N of head r // N

    @property
    def length(self) -> int:
        return self._table.length

    @property
    def _rows(self) -> Tensor:
        """Int32 `[B, Hkv, N]`."""
        return self._table.view().squeeze(-1)

    def append(self, keys: Tensor, values: Tensor) -> None:
        batch, heads, tokens, _ = keys.shape
        if self.length == 0:
            self._clear()
            self._keys, self._values = keys.new_empty(0, keys.shape[3]), values.new_empty(0, values.shape[3])
            self._free = self._free.to(keys.device)
            self._filling = torch.zeros(batch, heads, dtype=torch.long, device=keys.device)
        else:
            self._ordered = False
        rows = self._take(batch * heads * tokens)
        for pool, new in ((self._keys, keys), (self._values, values)):
            pool[rows.long()] = new.reshape(-1, new.shape[3])
        self._table.append(rows.view(batch, heads, tokens, 1))

    def _take(self, count: int) -> Tensor:
        """Rows that are free, int32 `[count]`."""
        if count <= len(self._free):
            self._free, rows = self._free.split([len(self._free) - count, count])
            return rows
        self._reserve(self._used + count, ROOM * self._filling.numel())
        self._used += count
        return torch.arange(self._used - count, self._used, dtype=torch.int32, device=self._free.device)

    def _reserve(self, needed: int, spare: int) -> None:
        if needed <= len(self._keys):
            return
        capacity = max(needed + spare, int(_GROWTH * len(self._keys)))
        self._keys, self._values = (
            _moved(pool[: self._used], capacity) for pool in (self._keys, self._values)
        )

    def keys(self, start: int = 0) -> Tensor:
        return self._read(self._keys, start)

    def values(self, start: int = 0) -> Tensor:
        return self._read(self._values, start)

    def _read(self, pool: Tensor, start: int) -> Tensor:
        rows = self._rows
        if self._ordered:
            return pool[: rows.numel()].view(*rows.shape, pool.shape[1])[:, :, start:]
        return pool[rows[:, :, start:].clamp(min=0).long()]

    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        chosen = Chosen.of(slots, counts, self._rows.shape[1])
        return self._attend(query, self._rows.gather(-1, chosen.slots.long()), chosen.counts, logits)[0]

    def attend_all(self, query: Tensor, logits: Logits, mask: Tensor | None) -> Tensor:  # noqa: ARG002
        return self._attend_all(query, logits, with_logits=False)[0]

    def weigh_all(self, query: Tensor, logits: Logits, mask: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        out, weights = self._attend_all(query, logits, with_logits=True)
        assert weights is not None
        return out, weights

    def _attend_all(
        self, query: Tensor, logits: Logits, *, with_logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As `weigh_all`; without logits where they are not asked for."""
        rows, counts = self._rows, (self.length - self._filling).int()
        slots = torch.arange(self.length, device=rows.device)
        ragged = bool(self._filling.any())
        if ragged:
            # Filling goes behind what is meant.
            rows = rows.gather(-1, (slots + self._filling.unsqueeze(-1)).clamp(max=self.length - 1))
        part, weights = self._attend(query.squeeze(2), rows, counts, logits, with_logits=with_logits)
        if ragged and weights is not None:
            places = slots - self._filling.unsqueeze(-1)
            groups = query.shape[1] // rows.shape[1]
            places = places.masked_fill(places < 0, self.length - 1).repeat_interleave(groups, 1)
            weights = weights.gather(-1, places)
        return add_sink_logits(part, logits).out.unsqueeze(2), weights

    def _attend(
        self, query: Tensor, rows: Tensor, counts: Tensor, logits: Logits, *, with_logits: bool = False
    ) -> tuple[Part, Tensor | None]:
        """The part, and the logits `[B, H, S]` where asked for."""
        batch, heads = rows.shape[:2]
        # All heads read from one pool: a view that repeats it for each costs nothing.
        keys, values = (pool.expand(batch * heads, *pool.shape) for pool in (self._keys, self._values))
        attended = kernels.gather_attention(
            query.reshape(batch * heads, -1, query.shape[-1]),
            keys,
            values,
            rows.reshape(batch * heads, -1),
            counts.reshape(-1),
            scale=logits.scale,
            softcap=logits.softcap,
            with_logits=with_logits,
        )
        part = Part(attended.out.reshape(*query.shape[:2], -1), attended.lse.reshape(query.shape[:2]))
        return part, None if attended.logits is None else attended.logits.view(*query.shape[:2], -1)

    @property
    def token_bytes(self) -> float:
        return self._rows.shape[1] * sum(pool[:1].nbytes for pool in (self._keys, self._values))

    def crop(self, length: int) -> None:
        if length == 0:
            self._clear()
        elif length < self.length:
            self._release(self._rows[:, :, length:])
            self._table.crop(length)

    def keep(self, kept: Chosen, into: Merging | None = None) -> None:
        if into is not None:
            self._merge(into)
        rows = self._rows
        if kept.dropped is not None:
            self._release(rows.gather(-1, kept.dropped.unsqueeze(-1)))
        else:
            left = torch.ones(*rows.shape[:2], self.length + 1, dtype=torch.bool, device=rows.device)
            left.scatter_(-1, kept.slots.long().masked_fill(~kept.valid_mask(), self.length), False)
            self._release(rows[left[..., :-1]])
            self._filling = int(kept.counts.max()) - kept.counts.long()
        self._table = kept_rows(self._table, kept, -1)
        if self._freed * _SCATTERED >= self._used:
            self._pack(self._rows)

    def _merge(self, into: Merging) -> None:
        """Write what kept tokens are after others went into them."""
        takes = into.takes & (self._rows >= 0)
        rows = self._rows[takes].long()
        for pool in (self._keys, self._values) if into.keys else (self._values,):
            pool[rows] = into.merged(self._read(pool, 0))[takes]

    def _release(self, rows: Tensor) -> None:
        rows = rows[rows >= 0]
        self._free = torch.cat([self._free, rows.flatten()])
        self._freed += len(rows)
        self._ordered = False

    def reorder(self, rows: Tensor) -> None:
        if self.length:
            self._pack(self._rows[rows.to(self._free.device)])

    def _pack(self, table: Tensor) -> None:
        """Hold what `table [B, Hkv, N]` names, each entry in a row of its own, in its order."""
        valid = table >= 0
        taken, capacity = table[valid].long(), int(valid.sum()) + ROOM * valid.shape[:2].numel()
        # One after the other, so that only one pool exists twice.
        self._keys = _moved(self._keys, capacity, taken)
        self._values = _moved(self._values, capacity, taken)
        packed = torch.full_like(table, -1)
        packed[valid] = torch.arange(len(taken), dtype=torch.int32, device=table.device)
        self._filling = (~valid).sum(-1)
        self._table = GrowingBuffer(ROOM)
        self._table.append(packed.unsqueeze(-1))
        self._free, self._used, self._freed = self._free[:0], len(taken), 0
        self._ordered = bool(valid.all())

    def state(self) -> dict[str, Tensor]:
        """The pool's rows, packed, and the table."""
        if self.length == 0:
            return {}
        self._pack(self._rows)
        return {
            "keys": self._keys[: self._used],
            "values": self._values[: self._used],
            "rows": self._rows,
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        self._clear()
        if not state:
            return
        rows = state["rows"]
        self._keys, self._values = state["keys"], state["values"]
        self._free = self._free.to(rows.device)
        self._pack(rows)

    @property
    def footprint(self) -> Footprint:
        held = (self._keys, self._values, self._free)
        return Footprint(device=self._table.nbytes + sum(tensor.nbytes for tensor in held))


def _moved(pool: Tensor, capacity: int, rows: Tensor | None = None) -> Tensor:
    """A pool of so many rows that begins with `rows` of another, or with all of it."""
    moved = empty((capacity, pool.shape[1]), pool.dtype, pool.device)
    if rows is None:
        moved[: len(pool)] = pool
    else:
        torch.index_select(pool, 0, rows, out=moved[: len(rows)])
    return moved
