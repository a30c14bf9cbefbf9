"""Attention over one cache, step after step, by native calls whose operands stay filled in between.

Shapes: B batch, H query heads, Hkv KV heads, R = B * Hkv rows, D head size, S slots of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.kernels.attention.native import has_native
from keyhole.kernels.backend.calls import AttentionCall, run
from keyhole.kernels.backend.library import current
from keyhole.kernels.backend.native import ASKED, TYPES, check
from keyhole.kernels.backend.signatures import Side


class PreparedAttention:
    """Exact attention of one query position over keys and values that stay where they are.

    Results are those of `gather_attention`, `paged_gather_attention` and `paged_attention`. What does not
    change from step to step is checked and written down once; a step fills in a few addresses.

    Args:
        keys: `[B, Hkv, cap, D]`, with a free stride between rows; as pages `[blocks, block size, Hkv, D]`.
        values: as keys.
        paged: whether they are pages, of one sequence, whose table each call names.
    """

    def __init__(self, keys: Tensor, values: Tensor, *, paged: bool = False) -> None:
        self.keys, self.values, self.paged = keys, values, paged
        call = self._call = AttentionCall()
        call.keys, call.values = _side(keys, paged), _side(values, paged)
        call.type = TYPES[keys.dtype]
        if paged:
            blocks, block_size, heads, _ = keys.shape
            call.pages.block_size, call.pages.blocks, call.pages.heads = block_size, blocks, heads
            self._batch = 1
        else:
            self._batch, heads = keys.shape[:2]
        self._heads, self._size = heads, keys.shape[-1]
        call.rows, call.size = self._batch * heads, self._size

    @property
    def rows(self) -> int:
        """Batch rows times KV heads."""
        return self._batch * self._heads

    def operands(self, heads: int, scale: float) -> AttentionCall:
        """Where keys and values lie and how the logits of `heads` query heads are made, for other calls."""
        call = AttentionCall.from_buffer_copy(self._call)
        call.heads, call.scale, call.softcap, call.capacity = heads // self._heads, scale, 0.0, 0
        return call

    def takes(self, query: Tensor) -> bool:
        """Whether it answers such a query: on a CPU, of a type it reads, with no gradient to pass."""
        learns = torch.is_grad_enabled() and (query.requires_grad or self.keys.requires_grad)
        return query.dtype in ASKED and query.is_cpu and not learns

    def attend(
        self,
        query: Tensor,
        length: int,
        slots: Tensor | None,
        counts: Tensor | None,
        *,
        scale: float,
        softcap: float | None = None,
        sink_logits: Tensor | None = None,
        before: tuple[Tensor, Tensor] | None = None,
        table: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attention `[B, H, D]` of `query [B, H, D]`, and its log-sum-exp, float32 `[B, H]`.

        Args:
            length: slots that there are.
            slots: int32 `[B, Hkv, S]`, of which the first `counts` (int32 `[B, Hkv]`) are read; None is all.
            sink_logits: `[H]`, in the denominator only.
            before: attention over other tokens and its log-sum-exp, in the shapes of the result; merged in.
            table: int32 `[W]`, the pages.

        Raises:
            ValueError: a slot or a count is out of range, or the query is not that of the cache.
        """
        self._check(query)
        call, query, out = (
            self._call,
            query.contiguous(),
            torch.empty_like(query, memory_format=torch.contiguous_format),
        )
        lse = torch.empty(query.shape[:2], dtype=torch.float32)
        call.query, call.asked, call.heads = (
            query.data_ptr(),
            TYPES[query.dtype],
            query.shape[1] // self._heads,
        )
        call.capacity, call.scale, call.softcap = length, scale, softcap or 0.0
        call.out, call.lse = out.data_ptr(), lse.data_ptr()
        if slots is None or counts is None:
            call.slots, call.counts, call.width = None, None, length
        else:
            slots, counts = self._fitting(slots, counts)
            call.slots, call.slots_stride, call.width = slots.data_ptr(), slots.stride(1), slots.shape[-1]
            call.counts = counts.data_ptr()
        sinks = None if sink_logits is None else sink_logits.float().repeat(self._batch)
        call.sinks = None if sinks is None else sinks.data_ptr()
        if before is None:
            call.before = call.before_lse = None
        else:
            held, held_lse = before[0].to(query.dtype).contiguous(), before[1].contiguous()
            call.before, call.before_lse = held.data_ptr(), held_lse.data_ptr()
        if table is not None:
            call.pages.table = table.data_ptr()
        check(run("kh_attend", call))
        return out, lse

    def _check(self, query: Tensor) -> None:
        batch, heads, size = query.shape
        if batch != self._batch or heads % self._heads or size != self._size:
            raise ValueError(
                f"query {list(query.shape)} does not fit {self._batch} sequences of {self._heads} KV heads "
                f"of size {self._size}"
            )

    def _fitting(self, slots: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        rows = (self._batch, self._heads)
        if slots.shape[:2] != rows or counts.shape != rows:
            shapes = list(slots.shape), list(counts.shape)
            raise ValueError(
                f"slots and counts {shapes} do not fit {rows[0]} sequences of {rows[1]} KV heads"
            )
        return _integers(slots), _integers(counts)


def prepared(keys: Tensor, values: Tensor, *, paged: bool = False) -> PreparedAttention | None:
    """The native calls for a cache; None where the native library does not read such a one."""
    ready = current() is not None and keys.is_cpu and values.is_cpu and has_native(keys, values)
    rows = paged or all(t.stride(0) == t.shape[1] * t.stride(1) or len(t) == 1 for t in (keys, values))
    if not ready or not rows or keys.dtype == torch.int8 or keys.shape != values.shape:
        return None
    return PreparedAttention(keys, values, paged=paged)


def _side(source: Tensor, paged: bool) -> Side:
    if not paged:
        return Side(source.data_ptr(), None, source.stride(1), source.stride(2))
    block, slot, head, _ = source.stride()
    return Side(source.data_ptr(), None, head, slot, block)


def _integers(tensor: Tensor) -> Tensor:
    """As int32, side by side, rows as far apart as their sequence and head say."""
    tensor = tensor if tensor.dtype == torch.int32 else tensor.int()
    strides = tensor.stride()
    if tensor.dim() == 3:
        plain = strides[2] == 1 and (len(tensor) == 1 or strides[0] == strides[1] * tensor.shape[1])
        return tensor if plain else tensor.contiguous()
    return tensor.contiguous()
