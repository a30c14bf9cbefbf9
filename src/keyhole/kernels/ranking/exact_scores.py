"""Exact logits: against a small index such as landmarks or codewords, or against all keys."""

import ctypes

import torch
from torch import Tensor

from keyhole.kernels.backend.blocks import in_one_piece, pages_of
from keyhole.kernels.backend.dispatch import use_native, use_triton
from keyhole.kernels.backend.native import FLOATS, TYPES, call
from keyhole.kernels.backend.signatures import Pages, Side


def exact_scores(
    query: Tensor,
    keys: Tensor,
    first: int,
    last: int,
    *,
    scale: float = 1.0,
    block_table: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Logits [R, G, last - first] (float32) of query [R, G, D] against keys [R, cap, D] in first .. last.

    R rows (batch x KV heads), G query heads of a KV head, D head size, cap slots in a row. With a block_table
    [B, W] (int32 or int64) keys are pages [blocks, block size, Hkv, D], and R = B * Hkv.

    Raises:
        ValueError: shapes do not fit, or slots lie outside (on a GPU the table is not looked at, and scores
            of blocks outside the pages are 0).
    """
    _check(query, keys, first, last, block_table)
    operands = query, keys, *(() if block_table is None else (block_table,))
    if use_native(impl, *operands, supported=keys.dtype in FLOATS):
        return _native(query.float().contiguous(), keys, first, last, scale, block_table)
    if use_triton(impl, *operands, supported=keys.dtype in FLOATS):
        from keyhole.kernels.ranking.triton.exact_scores import exact_scores as on_gpu

        return on_gpu(query, keys, first, last, scale, block_table)
    if block_table is not None:
        bounds = (torch.full((len(block_table),), bound, device=keys.device) for bound in (first, last))
        keys = in_one_piece(keys, block_table, *bounds).flatten(0, 1)
    return query.float() @ keys[:, first:last].float().transpose(1, 2) * scale


def _check(query: Tensor, keys: Tensor, first: int, last: int, table: Tensor | None) -> None:
    if table is None:
        fits = query.dim() == keys.dim() == 3 and query.shape[0] == keys.shape[0]
    else:
        fits = query.dim() == 3 and keys.dim() == 4 and table.dim() == 2
        fits = fits and query.shape[0] == table.shape[0] * keys.shape[2]
    if not fits or query.shape[2] != keys.shape[-1]:
        named = "" if table is None else f" and block_table {list(table.shape)}"
        raise ValueError(f"keys {list(keys.shape)}{named} do not fit query {list(query.shape)}")
    capacity = keys.shape[1] * (1 if table is None else table.shape[1])
    if not 0 <= first <= last <= capacity:
        raise ValueError(f"slots {first}..{last} lie outside 0..{capacity}")


def _native(
    query: Tensor, keys: Tensor, first: int, last: int, scale: float, block_table: Tensor | None
) -> Tensor:
    rows, heads, size = query.shape
    keys = keys if keys.stride(-1) == 1 else keys.contiguous()
    if block_table is None:
        side, pages = Side(keys.data_ptr(), None, keys.stride(0), keys.stride(1)), Pages()
    else:
        table = block_table.int().contiguous()
        block, slot, row, _ = keys.stride()
        side, pages = Side(keys.data_ptr(), None, row, slot, block), pages_of(keys, table)
    out = torch.empty(rows, heads, last - first, dtype=torch.float32)
    call(
        "kh_exact_scores", query.data_ptr(), rows, heads, size, ctypes.addressof(side), TYPES[keys.dtype],
        ctypes.addressof(pages), first, last - first, scale, out.data_ptr(),
    )  # fmt: skip
    return out
