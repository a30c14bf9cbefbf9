"""Rows copied between memories by the GPU itself.

`held` may be pinned host memory, which is read and written in place, without a copy on the host. Rows are
moved as integers, 16 bytes at a time where they lie so.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import padded
from keyhole.kernels.resident_rows.reference import Extent, ResidentFound, ResidentState, part

_TILE = 1024  # words of a program, all on their way at once; a link needs some 100 KB on it, 25 programs
_WORDS = {4: torch.int32, 2: torch.int16, 1: torch.uint8}


def resident_fill(pool: Tensor, held: Tensor, found: ResidentFound) -> None:
    """See `resident_fill`."""
    pool, held = _words(pool, held)
    _copy_rows(held, pool, found.missed.shape[1], 0, found)


def read_rows(out: Tensor, held: Tensor, span: Extent) -> None:
    """Copy a part of `held` [R, N, W] to `out` [R, last - first, stop - start]."""
    whole = span._replace(first=0, last=held.shape[1])
    target, source = _words(out, part(held, whole))
    _copy_rows(source, target, span.last - span.first, span.first, None)


def resident_append(state: ResidentState, pool: Tensor, held: Tensor, rows: Tensor) -> None:
    """See `resident_append`. A program for each row, which alone moves its end."""
    pool, held, rows = _words(pool, held, rows.contiguous())
    words = rows.shape[2]
    tile = min(padded(words, 1), _TILE)
    _append[(rows.shape[0],)](
        rows, pool, held, state.held, pool.stride(0), held.stride(0), held.shape[1], state.owner.shape[1],
        RING=state.ring, TOKENS=rows.shape[1], WORDS=words, TILE=tile, PARTS=triton.cdiv(words, tile),
        num_warps=max(1, tile // 128),
    )  # fmt: skip


def _words(*tensors: Tensor) -> list[Tensor]:
    """The same memory as the widest integers that all rows are made of, each row's lying side by side."""
    bytes_of = [
        each * tensor.element_size()
        for tensor in tensors
        for each in (tensor.shape[2], tensor.stride(1), tensor.stride(0), tensor.storage_offset())
    ]
    size = math.gcd(*bytes_of, max(_WORDS))
    return [tensor.view(_WORDS[size]) for tensor in tensors]


def _copy_rows(source: Tensor, target: Tensor, count: int, first: int, found: ResidentFound | None) -> None:
    """Copy rows from `first` on to the start of `target`, or what was not found to the places it takes."""
    words = target.shape[2]
    tile = min(padded(words, 1), _TILE)
    entries = _TILE // tile
    missed, taken, misses = (None, None, None) if found is None else (found.missed, found.taken, found.misses)
    if target.shape[0] * count:
        _copy[(triton.cdiv(count, entries), target.shape[0])](
            source, target, missed, taken, misses, count, first, source.stride(0), source.stride(1),
            target.stride(0), target.stride(1), source.shape[1],
            WORDS=words, ENTRIES=entries, TILE=tile, PARTS=triton.cdiv(words, tile),
        )  # fmt: skip


@triton.jit(do_not_specialize=["count", "first"])
def _copy(
    source, target, missed, taken, misses, count, first, from_row, from_slot, to_row, to_slot, slots,
    WORDS: tl.constexpr, ENTRIES: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    if missed is None:
        there, here = first + entry, entry
        meant = entry < count
    else:
        meant = entry < tl.load(misses + row)
        there = tl.load(missed + row * count + entry, mask=meant, other=0)
        here = tl.load(taken + row * count + entry, mask=meant, other=0)
    meant = meant & (there < slots)
    source += row * from_row + there.to(tl.int64)[:, None] * from_slot
    target += row * to_row + here.to(tl.int64)[:, None] * to_slot
    for part_of in range(PARTS):
        word = part_of * TILE + tl.arange(0, TILE)
        asked = meant[:, None] & (word < WORDS)[None, :]
        tl.store(target + word[None, :], tl.load(source + word[None, :], mask=asked), mask=asked)


@triton.jit
def _append(
    rows, pool, held, ends, pool_row, held_row, slots, places,
    RING: tl.constexpr, TOKENS: tl.constexpr, WORDS: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    first, last = tl.load(ends + 2 * row), tl.load(ends + 2 * row + 1)
    rows, pool, held = rows + row * TOKENS * WORDS, pool + row * pool_row, held + row * held_row
    for token in range(TOKENS):
        slot = (last + token).to(tl.int64)
        for part_of in range(PARTS):
            word = part_of * TILE + tl.arange(0, TILE)
            new = tl.load(rows + token * WORDS + word, mask=word < WORDS)
            tl.store(pool + (places + slot % RING) * WORDS + word, new, mask=word < WORDS)
            tl.store(held + slot * WORDS + word, new, mask=(word < WORDS) & (slot < slots))
    tl.debug_barrier()  # all threads have read where the end was
    tl.store(ends + 2 * row, tl.maximum(first, last + TOKENS - RING))
    tl.store(ends + 2 * row + 1, last + TOKENS)
