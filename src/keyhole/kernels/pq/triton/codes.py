"""Packing codes into a buffer, at a place that only the device needs to know."""

import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import padded
from keyhole.kernels.pq.types import BLOCK

_TILE = 64  # tokens of a program


def write_codes(buffer: Tensor, start: Tensor, codes: Tensor, bits: int) -> None:
    """Write codes [R, T, M] from slot `start` [1] on; slots that are not in the buffer are skipped."""
    rows, tokens, subspaces = codes.shape
    size = buffer.shape[2] // BLOCK
    _write[(triton.cdiv(tokens, _TILE), rows)](
        buffer, start, codes, *buffer.stride(), *codes.stride(), buffer.shape[1] * BLOCK, tokens, subspaces,
        size, NIBBLES=bits == 4, TILE=_TILE, SIZE=padded(size, 1),
    )  # fmt: skip


@triton.jit
def _write(
    buffer, start, codes, row_stride, block_stride, byte_stride, codes_row, codes_token, codes_space,
    capacity, tokens, subspaces, size, NIBBLES: tl.constexpr, TILE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    token, place = tl.program_id(0) * TILE + tl.arange(0, TILE)[:, None], tl.arange(0, SIZE)[None, :]
    slot = tl.load(start).to(tl.int64) + token
    written = (token < tokens) & (slot >= 0) & (slot < capacity) & (place < size)
    codes += row * codes_row + token * codes_token.to(tl.int64)
    lane = slot % 64
    if NIBBLES:
        packed = tl.load(codes + 2 * place * codes_space, mask=written, other=0)
        paired = written & (2 * place + 1 < subspaces)
        packed |= tl.load(codes + (2 * place + 1) * codes_space, mask=paired, other=0) << 4
        lane = lane % 32 * 2 + lane // 32
    else:
        packed = tl.load(codes + place * codes_space, mask=written, other=0)
    buffer += row * row_stride + slot // 64 * block_stride
    tl.store(buffer + (place * 64 + lane) * byte_stride, packed, mask=written)
