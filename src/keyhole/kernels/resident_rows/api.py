"""A resident buffer: rows of a slower memory that were read last, held by the device itself.

Source: HiSparse of SGLang (pull request 20343), whose policy this is: single tokens, of which the least
recently used goes first. Nothing is decided on the host, so it neither waits nor launches by what is missing.

Shapes: R rows (batch x KV heads), N slots there is room for, P places, Q slots of the ring, S chosen, W
width. The first P places of a pool [R, P + Q, W] hold copies of any slots; behind them is the ring, where
slot t is at P + t % Q while it is among the newest.
"""

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_triton
from keyhole.kernels.resident_rows import reference
from keyhole.kernels.resident_rows.reference import Extent, ResidentFound, ResidentState

__all__ = [
    "Extent",
    "ResidentFound",
    "ResidentState",
    "read_rows",
    "resident_append",
    "resident_directory",
    "resident_fill",
    "resident_lookup",
]


def resident_directory(rows: int, slots: int, places: int, ring: int, device: torch.device) -> ResidentState:
    """The state of an empty pool of `places` and a ring, for so many slots."""

    def filled(value: int, *shape: int) -> Tensor:
        return torch.full(shape, value, dtype=torch.int32, device=device)

    return ResidentState(
        place=filled(-1, rows, slots),
        owner=filled(-1, rows, places),
        used=filled(0, rows, places),
        clock=filled(0, rows),
        held=filled(0, rows, 2),
        counted=torch.zeros(2, dtype=torch.int64, device=device),
        ring=ring,
    )


def resident_lookup(
    state: ResidentState, slots: Tensor, counts: Tensor, *, impl: str = "auto"
) -> ResidentFound:
    """Places in the pool for slots [R, S] (int32 or int64), of which the first counts [R] are meant.

    The state is brought up to date: what is missing takes the places that were used longest ago, of equals
    the lower ones, never those that the same call found. `resident_fill` has to follow, which fetches it.
    A slot that is not held (`state.held`) is skipped, and counts neither as found nor as missing, and so
    are those in the ring. A slot that is given twice is fetched twice.

    Raises:
        ValueError: shapes do not fit, or there are fewer places than S.
    """
    _check_chosen(state, slots, counts)
    if use_triton(impl, *state.tensors, slots, counts):
        from keyhole.kernels.resident_rows.triton.lookup import resident_lookup as on_gpu

        return on_gpu(state, slots, counts)
    return reference.resident_lookup(state, slots, counts)


def resident_fill(pool: Tensor, held: Tensor, found: ResidentFound, *, impl: str = "auto") -> None:
    """Copy what a lookup missed from `held` [R, N, W] to its places in `pool` [R, P + Q, W].

    `held` may lie in pinned host memory, which a GPU reads in place: nothing is copied on the host.
    """
    _check_rows(pool, held)
    if use_triton(impl, pool, *found):
        from keyhole.kernels.resident_rows.triton.copy import resident_fill as on_gpu

        on_gpu(pool, held, found)
    else:
        reference.resident_fill(pool, held, found)


def resident_append(
    state: ResidentState, pool: Tensor, held: Tensor, rows: Tensor, *, impl: str = "auto"
) -> None:
    """Write new rows [R, T, W] behind the newest held slot: to the ring, and to `held` [R, N, W].

    `held` may lie in pinned host memory, to which a GPU writes without waiting. `state.held` goes on by T,
    which is at most the size of the ring; rows that would lie beyond N are not written there.
    """
    _check_rows(pool, held)
    _check_rows(pool, rows)
    if rows.shape[1] > state.ring:
        raise ValueError(f"{rows.shape[1]} rows are more than the ring's {state.ring}; write them in parts")
    if use_triton(impl, *state.tensors, pool, rows):
        from keyhole.kernels.resident_rows.triton.copy import resident_append as on_gpu

        on_gpu(state, pool, held, rows)
    else:
        reference.resident_append(state, pool, held, rows)


def read_rows(held: Tensor, extent: Extent, out: Tensor, *, impl: str = "auto") -> None:
    """Copy a part of `held` [R, N, W] to `out` [R, last - first, stop - start], of the same dtype.

    `held` may lie in pinned host memory, of which only the numbers asked for cross the link.
    """
    inside = 0 <= extent.first <= extent.last <= held.shape[1]
    if not inside or not 0 <= extent.start < extent.stop <= held.shape[2]:
        raise ValueError(f"{extent} does not lie in rows {list(held.shape)}")
    _check_rows(out, reference.part(held, extent))
    if use_triton(impl, out):
        from keyhole.kernels.resident_rows.triton.copy import read_rows as on_gpu

        on_gpu(out, held, extent)
    else:
        out.copy_(reference.part(held, extent))


def _check_chosen(state: ResidentState, slots: Tensor, counts: Tensor) -> None:
    rows, places = state.owner.shape
    if slots.dim() != 2 or slots.shape[0] != rows or counts.shape != (rows,):
        raise ValueError(f"slots {list(slots.shape)} and counts {list(counts.shape)} do not fit {rows} rows")
    if slots.shape[1] > places:
        raise ValueError(
            f"{slots.shape[1]} slots are chosen at once and the resident buffer has {places} places; "
            "give it more bytes"
        )


def _check_rows(pool: Tensor, rows: Tensor) -> None:
    fits = pool.dim() == rows.dim() == 3 and pool.shape[::2] == rows.shape[::2] and pool.dtype == rows.dtype
    if not fits:
        raise ValueError(
            f"rows {list(rows.shape)} of {rows.dtype} do not fit a pool {list(pool.shape)} of {pool.dtype}"
        )
