"""Packed product-quantiser codes in one plain uint8 buffer, addressed by token slot.

Shapes: R rows (batch x KV heads), T tokens, M sub-spaces, P = bytes of one token in a block row.

Layout of a buffer: [R, blocks, P * 64]. One block holds 64 consecutive slots as P rows of 64 bytes. With
4-bit codes P = ceil(M / 2), and byte 2i + h of row p belongs to slot i + 32h of the block, with sub-space 2p
in its low and 2p + 1 in its high nibble. Otherwise P = M, and byte t of row m belongs to slot t, sub-space m.
Growing a buffer means copying its blocks to the front of a longer one.
"""

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_native, use_triton
from keyhole.kernels.backend.native import call
from keyhole.kernels.pq.types import BLOCK


def row_bytes(subspaces: int, bits: int) -> int:
    """Bytes of one slot (P above): two 4-bit codes share a byte, every other width takes a whole one."""
    if not 1 <= bits <= 8:
        raise ValueError(f"bits={bits}, expected 1 to 8")
    if not 1 <= subspaces <= 256:
        raise ValueError(f"subspaces={subspaces}, expected 1 to 256")
    return (subspaces + 1) // 2 if bits == 4 else subspaces


def allocate_codes(
    rows: int, capacity: int, subspaces: int, bits: int, *, device: torch.device | str | None = None
) -> Tensor:
    """A zeroed code buffer [rows, ceil(capacity / 64), bytes] for `capacity` slots."""
    if rows < 1 or capacity < 0:
        raise ValueError(f"rows={rows}, capacity={capacity}, expected at least 1 and 0")
    blocks = -(-capacity // BLOCK)
    size = row_bytes(subspaces, bits) * BLOCK
    return torch.zeros(rows, blocks, size, dtype=torch.uint8, device=device)


def write_codes(buffer: Tensor, start: int | Tensor, codes: Tensor, *, bits: int, impl: str = "auto") -> None:
    """Write codes [R, T, M] (uint8, below 2**bits) into slots start .. start + T of every row, in place.

    Triton kernels do not look into a `start` that is a tensor of one integer, and write what fits.
    """
    rows, tokens, subspaces = codes.shape
    _check_buffer(buffer, subspaces, bits)
    if buffer.shape[0] != rows:
        raise ValueError(f"codes have {rows} rows, the buffer {buffer.shape[0]}")
    if codes.dtype != torch.uint8:
        raise TypeError(f"codes are {codes.dtype}, expected torch.uint8")
    if use_triton(impl, buffer, codes):
        _write_on_gpu(buffer, start, codes, bits)
        return
    start = int(start)
    _check_range(buffer, start, start + tokens)
    if tokens == 0:
        return
    if use_native(impl, buffer, codes, supported=buffer.stride(-1) == 1):
        codes = codes.contiguous()
        call(
            "kh_write_codes", buffer.data_ptr(), buffer.stride(0), buffer.stride(1), start,
            codes.data_ptr(), rows, tokens, subspaces, bits,
        )  # fmt: skip
        return
    block, column = _places(start, start + tokens, bits, buffer.device)
    _block_rows(buffer)[:, block, :, column] = _pack(codes, bits).transpose(0, 1)


def read_codes(buffer: Tensor, start: int, stop: int, *, subspaces: int, bits: int) -> Tensor:
    """The codes [R, stop - start, M] (uint8) held in slots start .. stop of every row."""
    _check_buffer(buffer, subspaces, bits)
    _check_range(buffer, start, stop)
    block, column = _places(start, stop, bits, buffer.device)
    packed = _block_rows(buffer)[:, block, :, column].transpose(0, 1)
    if bits != 4:
        return packed.contiguous()
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)[..., :subspaces].contiguous()


def read_as_words(buffer: Tensor) -> bool:
    """Whether kernels on a GPU can read four bytes of the buffer at a time."""
    places = (buffer.data_ptr(), buffer.stride(0), buffer.stride(1))
    return buffer.stride(2) == 1 and not any(place % 4 for place in places)


def _write_on_gpu(buffer: Tensor, start: int | Tensor, codes: Tensor, bits: int) -> None:
    from keyhole.kernels.pq.triton.codes import write_codes as on_gpu

    if isinstance(start, int):
        _check_range(buffer, start, start + codes.shape[1])
        start = torch.full((1,), start, device=buffer.device)
    if codes.numel():
        on_gpu(buffer, start, codes, bits)


def _check_buffer(buffer: Tensor, subspaces: int, bits: int) -> None:
    size = row_bytes(subspaces, bits) * BLOCK
    if buffer.dtype != torch.uint8 or buffer.dim() != 3 or buffer.shape[2] != size:
        raise ValueError(
            f"buffer is {buffer.dtype} {list(buffer.shape)}, expected uint8 [rows, blocks, {size}]"
        )


def _check_range(buffer: Tensor, start: int, stop: int) -> None:
    capacity = buffer.shape[1] * BLOCK
    if not 0 <= start <= stop <= capacity:
        raise ValueError(f"slots {start}..{stop} lie outside 0..{capacity}")


def _block_rows(buffer: Tensor) -> Tensor:
    return buffer.view(buffer.shape[0], buffer.shape[1], -1, BLOCK)


def _places(start: int, stop: int, bits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    slot = torch.arange(start, stop, device=device)
    lane = slot % BLOCK
    return slot // BLOCK, 2 * (lane % 32) + lane // 32 if bits == 4 else lane


def _pack(codes: Tensor, bits: int) -> Tensor:
    if bits != 4:
        return codes
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[..., 0::2] | codes[..., 1::2] << 4
