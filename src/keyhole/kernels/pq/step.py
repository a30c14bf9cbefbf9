"""A decode step's choice by product-quantiser codes in one native call: turned, weighed, looked up, picked.

Shapes: R rows (batch x KV heads), G query heads of a KV head, D head size, M sub-spaces, S slots picked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.kernels.backend.calls import PqStepCall, run
from keyhole.kernels.backend.library import current
from keyhole.kernels.backend.native import ASKED, OUT_OF_RANGE, TYPES, check
from keyhole.kernels.pq.types import BLOCK, Picked


class PreparedScan:
    """Picks by one index as `pq_select` does, its operands filled in between steps.

    Args:
        codebooks: float32 `[R, M, C, D / M]`.
        codes: as `allocate_codes` makes them, of R rows.
        rotation: float32 `[R, D, D]`, what queries are multiplied by, or None.
        moment: float32 `[R, D, D]`, second moment of what codes leave out; half of the variance that it gives
            a query's logits is taken off its anchors.
    """

    def __init__(self, codebooks: Tensor, codes: Tensor, rotation: Tensor | None, moment: Tensor) -> None:
        call = self._call = PqStepCall()
        rotation = None if rotation is None else rotation.contiguous()
        self._held = codebooks.contiguous(), codes, rotation, moment.contiguous()
        call.index.place(self._held[0], codes)
        call.rotation = None if rotation is None else rotation.data_ptr()
        call.moment, call.rows = self._held[3].data_ptr(), len(codebooks)
        self._capacity = codes.shape[1] * BLOCK

    def operands(self, heads: int, largest: float, scale: float) -> PqStepCall:
        """The index, and what does not change from step to step of G `heads`, for calls that do the rest."""
        call = PqStepCall.from_buffer_copy(self._call)
        call.heads, call.largest, call.scale, call.softcap = heads, largest, scale, 0.0
        return call

    def pick(
        self,
        query: Tensor,
        first: Tensor,
        stop: Tensor,
        anchor_lse: Tensor,
        *,
        k: int,
        largest: float,
        scale: float,
        softcap: float | None = None,
    ) -> Picked | None:
        """The k slots in [first, stop) (int32 `[R]`) with most estimated mass; the mass is within 0 to 1.

        None where the query `[R, G, D]` has numbers beyond `largest`.

        Args:
            anchor_lse: float32 `[R, G]`, log-sum-exp of the logits that are always read.

        Raises:
            ValueError: numbers that are not finite.
        """
        call, query, anchor_lse = self._call, query.contiguous(), anchor_lse.contiguous()
        rows, width = len(query), min(k, self._capacity)
        slots = torch.empty(rows, width, dtype=torch.int32)
        counts, masses = torch.empty(rows, dtype=torch.int32), torch.empty(rows)
        call.query, call.asked, call.heads = query.data_ptr(), TYPES[query.dtype], query.shape[1]
        call.largest, call.scale, call.softcap = largest, scale, softcap or 0.0
        call.first, call.stop, call.anchors = first.data_ptr(), stop.data_ptr(), anchor_lse.data_ptr()
        call.floor = call.cap = width
        call.slots, call.counts, call.masses = slots.data_ptr(), counts.data_ptr(), masses.data_ptr()
        status = run("kh_pq_step", call)
        if status == OUT_OF_RANGE:
            return None
        check(status)
        return Picked(slots, counts, masses)


def scan_is_native(query: Tensor, codebooks: Tensor, codes: Tensor) -> bool:
    """Whether `PreparedScan` answers such queries by such an index."""
    ready = current() is not None and query.is_cpu and codes.is_cpu
    return ready and query.dtype in ASKED and codes.stride(-1) == 1 and codebooks.dtype == torch.float32
