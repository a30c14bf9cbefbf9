"""Estimated logits of all indexed tokens.

Shapes: R rows (batch x KV heads), G query heads of a KV head, D head size, M sub-spaces, n slots.
"""

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_native, use_triton
from keyhole.kernels.backend.native import call
from keyhole.kernels.pq.codes import read_as_words, read_codes, row_bytes
from keyhole.kernels.pq.tables import Tables, check_query, pq_tables, softcapped
from keyhole.kernels.pq.types import BLOCK


def pq_scores(
    query: Tensor,
    codebooks: Tensor,
    buffer: Tensor,
    n: int,
    *,
    scale: float,
    softcap: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Estimated logits [R, G, n] (float32) of query [R, G, D] against the codes in slots 0 .. n.

    codebooks [R, M, C, D / M]; buffer as made by `allocate_codes`. The estimate is the scaled sum of table
    entries, which are rounded to integers as `pq_tables` says.
    """
    check_query(query, codebooks)
    check_buffer(buffer, codebooks, n)
    if use_native(impl, query, codebooks, buffer, supported=buffer.stride(2) == 1):
        return _native(query.float().contiguous(), codebooks.float().contiguous(), buffer, n, scale, softcap)
    if use_triton(impl, query, codebooks, buffer, supported=read_as_words(buffer)):
        from keyhole.kernels.pq.triton.scores import pq_scores as on_gpu

        return on_gpu(query, codebooks, buffer, n, scale, softcap)
    tables = pq_tables(query, codebooks, scale=scale)
    logits = tables.base[..., None] + tables.step[..., None] * table_sums(tables, buffer, n)
    return softcapped(logits, softcap).float()


def check_buffer(buffer: Tensor, codebooks: Tensor, n: int) -> None:
    """Raise ValueError unless the buffer has the rows of the codebooks and at least n slots."""
    if buffer.dim() != 3 or buffer.shape[0] != codebooks.shape[0]:
        raise ValueError(
            f"code buffer {list(buffer.shape)} does not have the {codebooks.shape[0]} rows of the codebooks"
        )
    capacity = buffer.shape[1] * BLOCK
    if not 0 <= n <= capacity:
        raise ValueError(f"n={n}, expected 0 to the capacity {capacity}")
    size = row_bytes(codebooks.shape[1], codebooks.shape[2].bit_length() - 1) * BLOCK
    if buffer.dtype != torch.uint8 or buffer.shape[2] != size:
        raise ValueError(
            f"code buffer is {buffer.dtype} {list(buffer.shape)}, expected uint8 [.., .., {size}]"
        )


def table_sums(tables: Tables, buffer: Tensor, n: int) -> Tensor:
    """Integer sums [R, G, n] (int32) of the table entries picked by the codes in slots 0 .. n."""
    rows, heads, subspaces, centroids = tables.entries.shape
    codes = read_codes(buffer, 0, n, subspaces=subspaces, bits=centroids.bit_length() - 1)
    sums = torch.zeros(rows, heads, n, dtype=torch.int32, device=buffer.device)
    for m in range(subspaces):
        picked = codes[:, None, :, m].long().expand(rows, heads, n)
        sums += tables.entries[:, :, m].gather(2, picked)
    return sums


def _native(
    query: Tensor, codebooks: Tensor, buffer: Tensor, n: int, scale: float, softcap: float | None
) -> Tensor:
    rows, heads, _ = query.shape
    out = torch.empty(rows, heads, n, dtype=torch.float32)
    call(
        "kh_pq_scores", query.data_ptr(), rows, heads,
        codebooks.data_ptr(), codebooks.stride(0), *codebooks.shape[1:],
        buffer.data_ptr(), buffer.stride(0), buffer.stride(1), n, scale, softcap or 0.0, out.data_ptr(),
    )  # fmt: skip
    return out
