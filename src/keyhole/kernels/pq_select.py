"""Choice of the slots worth reading, from estimated logits; one set for the G query heads of a KV head.

Shapes: R rows (batch x KV heads), G query heads of a KV head, D head size, M sub-spaces, n slots.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.kernels.codes import BLOCK
from keyhole.kernels.dispatch import require, use_native
from keyhole.kernels.native import call
from keyhole.kernels.pq_scores import check_buffer, table_sums
from keyhole.kernels.pq_tables import check_query, pq_tables, softcapped

Bounds = int | Sequence[int] | Tensor


class Picked(NamedTuple):
    slots: Tensor  # int32 [R, width], ascending in slots[r, :counts[r]], 0 beyond
    counts: Tensor  # int32 [R]
    mass: Tensor  # float32 [R]: estimated share of attention mass in the picked slots and the anchors


class Budget(NamedTuple):
    floor: int
    cap: int
    mass: float


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
    """
    check_query(query, codebooks)
    rows = query.shape[0]
    capacity = buffer.shape[1] * BLOCK
    starts, stops = _bounds(first, rows, "first"), _bounds(last, rows, "last")
    for start, stop in zip(starts, stops, strict=True):
        require(0 <= start <= stop <= capacity, f"range {start}..{stop} lies outside 0..{capacity}")
    budget = _budget(k, mass, floor, cap, capacity)
    if anchor_lse is None:
        anchor_lse = query.new_full(query.shape[:2], -torch.inf, dtype=torch.float32)
    require(
        anchor_lse.shape == query.shape[:2],
        f"anchor_lse has shape {list(anchor_lse.shape)}, expected {list(query.shape[:2])}",
    )
    if use_native(impl, query, codebooks, buffer, supported=buffer.stride(2) == 1):
        run = _native
    else:
        run = _reference
    return run(query, codebooks, buffer, starts, stops, scale, softcap, anchor_lse, budget)


def _budget(k: int | None, mass: float | None, floor: int, cap: int | None, capacity: int) -> Budget:
    require((k is None) != (mass is None), f"k={k}, mass={mass}: give exactly one of them")
    if k is not None:
        require(k >= 0, f"k={k}, expected at least 0")
        return Budget(min(k, capacity), min(k, capacity), 0.0)
    require(0 <= mass <= 1, f"mass={mass}, expected 0 to 1")
    require(
        floor >= 0 and (cap is None or cap >= floor), f"floor={floor}, cap={cap}, expected 0 <= floor <= cap"
    )
    cap = capacity if cap is None else min(cap, capacity)
    return Budget(min(floor, cap), cap, mass)


def _bounds(value: Bounds, rows: int, name: str) -> Sequence[int]:
    if isinstance(value, int):
        return [value] * rows
    values = value.tolist() if isinstance(value, Tensor) else value
    require(len(values) == rows, f"{name} has {len(values)} entries, expected one for each of {rows} rows")
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


def _reference(
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
    require(bool((anchor_lse < torch.inf).all()), "anchor_lse holds NaN or +inf")
    check_buffer(buffer, codebooks, max(stops))
    tables = pq_tables(query, codebooks, scale=scale)
    sums = table_sums(tables, buffer, max(stops))
    logits = softcapped(tables.base[..., None] + tables.step[..., None] * sums, softcap)
    rows = query.shape[0]
    slots = torch.zeros(rows, budget.cap, dtype=torch.int32, device=query.device)
    counts = torch.zeros(rows, dtype=torch.int32, device=query.device)
    masses = torch.zeros(rows, dtype=torch.float32, device=query.device)
    for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        share, anchor = _shares(logits[row, :, start:stop], anchor_lse[row].double())
        chosen = _chosen(share, anchor, budget)
        slots[row, : len(chosen)] = (chosen + start).int()
        counts[row] = len(chosen)
        masses[row] = anchor + share[chosen].sum()
    return Picked(slots, counts, masses)


def _shares(logits: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Share of attention mass of each slot [n] and of the anchors, from logits [G, n] and anchors [G]."""
    lse = torch.cat([logits, anchors[:, None]], 1).logsumexp(1)
    lse = lse.masked_fill(lse == -torch.inf, 0)
    return (logits - lse[:, None]).exp().mean(0), (anchors - lse).exp().mean()


def _chosen(share: Tensor, anchor: Tensor, budget: Budget) -> Tensor:
    """Positions of the picked slots, ascending."""
    order = share.argsort(descending=True, stable=True)
    reached = anchor + share[order].cumsum(0)
    needed = int((reached < budget.mass).sum()) + int(anchor < budget.mass)
    count = min(max(needed, budget.floor), budget.cap, len(order))
    return order[:count].sort().values
