"""From numbers, or from GGUF's blocks, to packed matrices.

Legend: M rows, N columns, G = ceil(N / 32) groups; see `matrix`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.kernels.products.matrix import GROUP, TILE, Matrix, Packing

# Bytes of a GGUF block before its codes: a float16 scale, and a minimum.
_HEADS = {Packing.INT8: 2, Packing.INT4: 2, Packing.INT4_MIN: 4}
_ROWS = 4096  # quantised at once
_LEAST = 6e-8  # the smallest float16; smaller scales would be 0


def pack_blocks(packing: Packing, blocks: Tensor, bias: Tensor | None = None) -> Matrix:
    """A matrix of GGUF's blocks, codes and scales bit for bit.

    blocks: uint8 `[M, G, bytes]`, of 18 (INT4, Q4_0), 20 (INT4_MIN, Q4_1) or 34 bytes (INT8, Q8_0).
    """
    head, units = _HEADS[packing], packing.units
    if blocks.dim() != 3 or blocks.dtype != torch.uint8 or blocks.shape[2] != head + 4 * units:
        raise ValueError(
            f"blocks of {packing.name} are uint8 [M, G, {head + 4 * units}], got {blocks.dtype} "
            f"{list(blocks.shape)}"
        )
    heads = blocks[..., :head].clone(memory_format=torch.contiguous_format).view(torch.float16)
    minima = heads[..., 1] if packing is Packing.INT4_MIN else None
    return _packed(packing, blocks[..., head:], heads[..., 0], minima, blocks.shape[1] * GROUP, bias)


def quantise(weight: Tensor, packing: Packing, bias: Tensor | None = None) -> Matrix:
    """Numbers `[M, N]` as codes: INT8 scales go by the largest magnitude of a group, INT4_MIN by its range.

    The error of a weight is at most half a scale, plus what float16 rounds of scale and minimum.

    Raises:
        ValueError: a weight that is not finite or too large for float16, or a packing without a rule.
    """
    columns = weight.shape[1]
    padded = -columns % GROUP
    parts = [_quantised(F.pad(part.float(), (0, padded)), packing) for part in weight.split(_ROWS)]
    codes, scales, *minima = (torch.cat(each) for each in zip(*parts, strict=True))
    return _packed(packing, codes, scales, minima[0] if minima else None, columns, bias)


def _quantised(weight: Tensor, packing: Packing) -> tuple[Tensor, ...]:
    """Codes uint8 [M, G, bytes], scales [M, G], and minima."""
    groups = weight.unflatten(1, (-1, GROUP))
    if not bool(groups.abs().amax() < torch.finfo(torch.float16).max):
        raise ValueError("a weight is not finite, or beyond 65504; such a matrix cannot be packed")
    if packing is Packing.INT8:
        scale = _rounded(groups.abs().amax(-1) / 127)
        codes = _codes(groups, scale).clamp(-127, 127)
        return codes.to(torch.int8).view(torch.uint8), scale
    if packing is not Packing.INT4_MIN:
        raise ValueError(f"numbers are packed as INT8 or INT4_MIN, not {packing.name}")
    least = groups.amin(-1).half()
    scale = _rounded((groups.amax(-1) - least.float()) / 15)
    codes = _codes(groups - least.float().unsqueeze(-1), scale).clamp(0, 15).to(torch.uint8)
    return codes[..., :16] | codes[..., 16:] << 4, scale, least


def _rounded(scale: Tensor) -> Tensor:
    return torch.where(scale < _LEAST, 0, scale).half()


def _codes(groups: Tensor, scale: Tensor) -> Tensor:
    """Of a group without a scale all codes are 0."""
    inverse = torch.where(scale > 0, 1 / scale.float(), 0)
    return (groups * inverse.unsqueeze(-1)).round()


def _packed(
    packing: Packing, codes: Tensor, scales: Tensor, minima: Tensor | None, columns: int, bias: Tensor | None
) -> Matrix:
    rows = codes.shape[0]
    missing = -rows % TILE

    def ranges(each: Tensor) -> Tensor:
        return F.pad(each, (0, 0, 0, missing)).unflatten(0, (-1, TILE)).transpose(1, 2).contiguous()

    whole = codes.clone(memory_format=torch.contiguous_format).view(torch.int32)
    units = F.pad(whole, (0, 0, 0, 0, 0, missing)).unflatten(0, (-1, TILE))
    tiles = units.permute(0, 2, 3, 1).contiguous().unsqueeze(-1).view(torch.uint8)
    return Matrix(
        packing,
        rows,
        columns,
        tiles,
        ranges(scales),
        None if minima is None else ranges(minima),
        None if bias is None else bias.float(),
    )
