"""Choice of the slots to read, from estimated logits; one set for the G query heads of a KV head.

Shapes: R rows (batch x KV heads), G query heads of a KV head, D head size, M sub-spaces, n slots.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_native, use_triton
from keyhole.kernels.backend.native import call
from keyhole.kernels.pq.codes import read_as_words
from keyhole.kernels.pq.reference import reference
from keyhole.kernels.pq.scores import check_buffer
from keyhole.kernels.pq.tables import check_query
from keyhole.kernels.pq.types import BLOCK, Budget, Picked

Bounds = int | Sequence[int] | Tensor


def pq_select(
    query: Tensor,
    codebooks: Tensor,
    buffer: Tensor,
    first: Bounds,
    last: Bounds,
    *,
    scale: float,
    k: int | None = None,
    mass: float | None = None,
    floor: int = 0,
    cap: int | None = None,
    anchor_lse: Tensor | None = None,
    softcap: float | None = None,
    impl: str = "auto",
) -> Picked:
    """Pick, for each row, the slots in [first, last) that hold most estimated attention mass.

    query [R, G, D], codebooks [R, M, C, D / M], buffer as made by `allocate_codes`; first and last: one int,
    or one for each row. anchor_lse [R, G] is the exact log-sum-exp of logits that are always read; -inf if
    there are none, which is the default.

    With a_gt the estimated logit and Z_g = exp(anchor_g) + sum_t exp(a_gt), slots are ranked by
    P[t] = mean over g of exp(a_gt) / Z_g, ties by lower position. Either `k` slots are picked (all, if there
    are fewer), or the fewest whose P, added to the anchors' share, reach `mass`, but at least `floor` and at
    most `cap` (default: all). The width of `slots` is k or cap, at most the capacity of the buffer.

    Triton kernels do not look into tensors: first and last are cut to the slots that there are, and numbers
    that are not finite give a choice without meaning. They have room for all slots of the buffer, unless
    `last` is known to the host.
    """
    check_query(query, codebooks)
    check_buffer(buffer, codebooks, 0)
    rows, capacity = query.shape[0], buffer.shape[1] * BLOCK
    budget = _budget(k, mass, floor, cap, capacity)
    if anchor_lse is None:
        anchor_lse = query.new_full(query.shape[:2], -torch.inf, dtype=torch.float32)
    if anchor_lse.shape != query.shape[:2]:
        raise ValueError(f"anchor_lse has shape {list(anchor_lse.shape)}, expected {list(query.shape[:2])}")
    if use_triton(impl, query, codebooks, buffer, anchor_lse, supported=read_as_words(buffer)):
        from keyhole.kernels.pq.triton.select import pq_select as on_gpu

        ranges = _on_device(first, last, rows, capacity, query.device)
        return on_gpu(query, codebooks, buffer, *ranges, scale, softcap, anchor_lse, budget)
    starts, stops = _ranges(first, last, rows, capacity)
    native = use_native(impl, query, codebooks, buffer, anchor_lse, supported=buffer.stride(2) == 1)
    run = _native if native else reference
    return run(query, codebooks, buffer, starts, stops, scale, softcap, anchor_lse, budget)


def _budget(k: int | None, mass: float | None, floor: int, cap: int | None, capacity: int) -> Budget:
    if (k is None) == (mass is None):
        raise ValueError(f"k={k}, mass={mass}: give exactly one of them")
    if k is not None:
        if k < 0:
            raise ValueError(f"k={k}, expected at least 0")
        return Budget(min(k, capacity), min(k, capacity), 0.0)
    if mass is None or not 0 <= mass <= 1:
        raise ValueError(f"mass={mass}, expected 0 to 1")
    if floor < 0 or (cap is not None and cap < floor):
        raise ValueError(f"floor={floor}, cap={cap}, expected 0 <= floor <= cap")
    cap = capacity if cap is None else min(cap, capacity)
    return Budget(min(floor, cap), cap, mass)


def _ranges(first: Bounds, last: Bounds, rows: int, capacity: int) -> tuple[Sequence[int], Sequence[int]]:
    starts, stops = _bounds(first, rows, "first"), _bounds(last, rows, "last")
    for start, stop in zip(starts, stops, strict=True):
        if not 0 <= start <= stop <= capacity:
            raise ValueError(f"range {start}..{stop} is outside 0..{capacity}")
    return starts, stops


def _on_device(
    first: Bounds, last: Bounds, rows: int, capacity: int, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """Both bounds as tensors [R], without waiting for those that are, and a slot behind all ranges."""
    span = capacity if isinstance(last, Tensor) else max(_bounds(last, rows, "last"))
    if not isinstance(first, Tensor) and not isinstance(last, Tensor):
        _ranges(first, last, rows, capacity)
    return _bound(first, rows, "first", device), _bound(last, rows, "last", device), min(span, capacity)


def _bound(value: Bounds, rows: int, name: str, device: torch.device) -> Tensor:
    if isinstance(value, int):
        return torch.full((rows,), value, dtype=torch.int32, device=device)
    if len(value) != rows:
        raise ValueError(f"{name} has {len(value)} entries, expected one for each of {rows} rows")
    return torch.as_tensor(value, device=device).contiguous()


def _bounds(value: Bounds, rows: int, name: str) -> Sequence[int]:
    if isinstance(value, int):
        return [value] * rows
    values = value.tolist() if isinstance(value, Tensor) else value
    if len(values) != rows:
        raise ValueError(f"{name} has {len(values)} entries, expected one for each of {rows} rows")
    return values


def _native(
    query: Tensor,
    codebooks: Tensor,
    buffer: Tensor,
    starts: Sequence[int],
    stops: Sequence[int],
    scale: float,
    softcap: float | None,
    anchor_lse: Tensor,
    budget: Budget,
) -> Picked:
    rows, heads, _ = query.shape
    query, codebooks = query.float().contiguous(), codebooks.float().contiguous()
    anchor_lse = anchor_lse.float().contiguous()
    first, last = (ctypes.c_int64 * rows)(*starts), (ctypes.c_int64 * rows)(*stops)
    slots = torch.empty(rows, budget.cap, dtype=torch.int32)
    counts = torch.empty(rows, dtype=torch.int32)
    masses = torch.empty(rows, dtype=torch.float32)
    call(
        "kh_pq_select", query.data_ptr(), rows, heads,
        codebooks.data_ptr(), codebooks.stride(0), *codebooks.shape[1:],
        buffer.data_ptr(), buffer.stride(0), buffer.stride(1), first, last, anchor_lse.data_ptr(),
        scale, softcap or 0.0, budget.mass, budget.floor, budget.cap,
        slots.data_ptr(), counts.data_ptr(), masses.data_ptr(),
    )  # fmt: skip
    return Picked(slots, counts, masses)
