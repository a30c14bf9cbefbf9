"""Keys and values of one request in blocks of a pool that an inference engine owns.

Legend: H query heads, Hkv KV heads, T tokens, D head size.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.attention import Logits, Part, merge
from keyhole.kernels.attention.prepared import prepared
from keyhole.kernels.pq.tables import softcapped
from keyhole.storage.base import Footprint, Storage
from keyhole.storage.chosen import Chosen
from keyhole.storage.merging import Merging


class PagedStorage(Storage):
    """Keys and values of one sequence: slot t is at `table[t // block size]`, `t % block size`.

    The engine owns the pool, and says before each step which blocks are the request's and what is written
    there already (`at`): all but the step's tokens, which are then appended, or these too, where it writes
    them itself.

    Args:
        keys: `[blocks, block size, Hkv, D]`, of any strides but the last, as `values`.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        if keys.dim() != 4 or keys.shape != values.shape or keys.dtype != values.dtype:
            raise ValueError(
                f"pages of keys {list(keys.shape)} and values {list(values.shape)} must be of one dtype and "
                "both [blocks, block size, heads, head size]"
            )
        if keys.stride(-1) != 1 or values.stride(-1) != 1:
            raise ValueError("the numbers of a key or value must be side by side in the pages")
        self._keys, self._values = keys, values
        self._table = torch.zeros(0, dtype=torch.int32, device=keys.device)
        self._length = 0
        self._token_bytes = 2 * keys.shape[2] * keys.shape[3] * keys.element_size()
        self._attention = prepared(keys, values, paged=True)

    def __getstate__(self) -> dict[str, Any]:
        # Addresses are no part of a copy.
        return self.__dict__ | {"_attention": None}

    def at(self, table: Tensor, length: int) -> None:
        """Use a block table from now on, of which the first `length` tokens are written.

        Args:
            table: int32 or int64 `[width]`, on the pages' device; it is not copied.

        Raises:
            ValueError: it is no such table, or has no room for so many tokens.
        """
        if table.dim() != 1 or table.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"a block table is a list of integers, int32 or int64, not {table.dtype} {list(table.shape)}"
            )
        self._check_room(table, length)
        self._table, self._length = table, length

    @property
    def length(self) -> int:
        return self._length

    @property
    def device(self) -> torch.device:
        return self._keys.device

    @property
    def heads(self) -> int:
        return self._keys.shape[2]

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self._keys.shape[1]

    @property
    def _blocks(self) -> Tensor:
        """The part of the table that has tokens."""
        return self._table[: -(-self._length // self.block_size)]

    def append(self, keys: Tensor, values: Tensor) -> None:
        length = self._length + keys.shape[2]
        self._check_room(self._table, length)
        for held, new in ((self._keys, keys), (self._values, values)):
            expected = (1, held.shape[2], length - self._length, held.shape[3])
            if new.shape != expected or new.dtype != held.dtype:
                raise ValueError(
                    f"{new.dtype} {list(new.shape)} cannot be written to pages of {held.dtype}, which take "
                    f"{list(expected)}"
                )
        for held, new in ((self._keys, keys), (self._values, values)):
            self._write(held, new[0].transpose(0, 1), self._length)
        self._length = length

    def _write(self, pages: Tensor, new: Tensor, start: int) -> None:
        """Put `new [T, Hkv, D]` at the slots from `start` on, which waits for a table that is on a GPU."""
        for index in range(start // self.block_size, -(-(start + len(new)) // self.block_size)):
            begin = index * self.block_size
            first, stop = max(start, begin), min(start + len(new), begin + self.block_size)
            block = pages[int(self._table[index])]
            block[first - begin : stop - begin] = new[first - start : stop - start]

    def keys(self, start: int = 0) -> Tensor:
        return self._tokens(self._keys, start)

    def values(self, start: int = 0) -> Tensor:
        return self._tokens(self._values, start)

    def _tokens(self, pages: Tensor, start: int) -> Tensor:
        """`[1, Hkv, length - start, D]`: of one block a view where the table is at hand, else a copy."""
        first, begin = divmod(start, self.block_size)
        count = self._length - start
        if 0 < count <= self.block_size - begin:
            # Cheap, as each step asks for its newest token.
            pages, begin = pages[:, begin : begin + count], 0
            if pages.is_cpu:
                return pages[int(self._table[first])].transpose(0, 1).unsqueeze(0)
        # Not by index_select, which would first make the whole pool contiguous.
        by_head = pages.permute(2, 0, 1, 3)[:, self._blocks[first:]].flatten(1, 2)
        return by_head[:, begin : begin + count].unsqueeze(0)

    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        return self._attend(query, Chosen.of(slots, counts, self.heads), logits, None)

    def attend_beside(self, part: Part, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        return self._attend(query, Chosen.of(slots, counts, self.heads), logits, part)

    def _attend(self, query: Tensor, chosen: Chosen, logits: Logits, before: Part | None) -> Part:
        found = self._attend_prepared(query, chosen, logits._replace(sink_logits=None), before)
        if found is not None:
            return found
        attended = kernels.paged_gather_attention(
            query.reshape(self.heads, -1, query.shape[-1]),
            self._keys,
            self._values,
            self._blocks.unsqueeze(0),
            chosen.slots.squeeze(0),
            chosen.counts.squeeze(0),
            scale=logits.scale,
            softcap=logits.softcap,
        )
        part = Part(attended.out.reshape(1, query.shape[1], -1), attended.lse.reshape(1, -1))
        return part if before is None else merge(before, part)

    def _attend_prepared(
        self, query: Tensor, chosen: Chosen | None, logits: Logits, before: Part | None
    ) -> Part | None:
        """Attention of `query [1, H, D]` over chosen slots or all; None where no native call does it."""
        native, table = self._attention, self._table
        if native is None or not native.takes(query) or table.dtype != torch.int32 or table.stride(0) != 1:
            return None
        slots, counts, _ = (None, None, None) if chosen is None else chosen
        options = logits._asdict() | {"before": before, "table": table}
        return Part(*native.attend(query, self._length, slots, counts, **options))

    def attend_all(self, query: Tensor, logits: Logits, mask: Tensor | None) -> Tensor:
        if mask is not None:
            return super().attend_all(query, logits, mask)
        found = self._attend_prepared(query.squeeze(2), None, logits, None)
        if found is not None:
            return found.out.unsqueeze(2)
        folded = query.reshape(self.heads, -1, query.shape[-1])
        sinks = None if logits.sink_logits is None else logits.sink_logits.view(folded.shape[:2])
        where = self._blocks.unsqueeze(0), torch.full((1,), self._length, device=query.device)
        options = {"scale": logits.scale, "softcap": logits.softcap, "sink_logits": sinks}
        attended = kernels.paged_attention(folded, self._keys, self._values, *where, **options)
        return attended.out.reshape(1, -1, 1, query.shape[-1])

    def scores(self, query: Tensor, logits: Logits) -> Tensor:
        products = kernels.exact_scores(
            query.reshape(self._keys.shape[2], -1, query.shape[-1]),
            self._keys,
            0,
            self._length,
            scale=logits.scale,
            block_table=self._blocks.unsqueeze(0),
        )
        return softcapped(products, logits.softcap).unsqueeze(0)

    def pooled(
        self,
        query: Tensor,
        span: kernels.Span,
        how: kernels.Pooling,
        *,
        score_extra: Tensor | None = None,
        share_extra: Tensor | None = None,
    ) -> kernels.Pooled:
        return kernels.pooled_attention(
            query,
            self._keys,
            span,
            how,
            score_extra=score_extra,
            share_extra=share_extra,
            block_table=self._blocks.unsqueeze(0),
        )

    @property
    def token_bytes(self) -> float:
        return self._token_bytes

    def crop(self, length: int) -> None:
        self._length = min(length, self._length)

    def keep(self, kept: Chosen, into: Merging | None = None) -> None:  # noqa: ARG002
        _refuse("drop single tokens", "a method that drops tokens must free whole blocks there")

    def reorder(self, rows: Tensor) -> None:  # noqa: ARG002
        _refuse("be reordered", "each sequence has a storage of its own")

    def restore(self, state: dict[str, Tensor]) -> None:  # noqa: ARG002
        _refuse("take over a saved state", "give the request's tokens to the engine again")

    def _check_room(self, table: Tensor, length: int) -> None:
        room = len(table) * self.block_size
        if not 0 <= length <= room:
            raise ValueError(f"{length} tokens do not fit the block table, which has room for 0 to {room}")

    @property
    def footprint(self) -> Footprint:
        """The request's blocks, those too that it shares with others."""
        return Footprint(device=len(self._blocks) * self.block_size * int(self.token_bytes))


def _refuse(what: str, instead: str) -> NoReturn:
    raise ValueError(f"pages that an engine owns and shares cannot {what}; {instead}")
