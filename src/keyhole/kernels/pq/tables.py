"""Integer look-up tables of a query against product-quantiser codebooks.

Shapes: R rows (batch x KV heads), G query heads of a KV head, M sub-spaces, C centroids, D head size.

A token's estimated logit is `base + step * sum`, where `sum` adds one small integer per sub-space. Native
code adds these integers in 16 bits, so they are bounded by 255 (C = 16: byte shuffles) or 65535 // M.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Tables(NamedTuple):
    entries: Tensor  # int32 [R, G, M, C]
    step: Tensor  # float64 [R, G]: logit of one unit
    base: Tensor  # float64 [R, G]: logit of a zero sum


def largest_entry(subspaces: int, bits: int) -> int:
    return 255 if bits == 4 else 65535 // subspaces


def check_query(query: Tensor, codebooks: Tensor) -> None:
    """Raise ValueError unless query [R, G, D] fits codebooks [R, M, C, D / M] with C = 2, 4, ... 256."""
    if query.dim() != 3 or codebooks.dim() != 4:
        raise ValueError(
            f"query and codebooks have {query.dim()} and {codebooks.dim()} dimensions, expected 3 and 4"
        )
    rows, subspaces, centroids, width = codebooks.shape
    if query.shape[0] != rows or query.shape[2] != subspaces * width:
        raise ValueError(f"query {list(query.shape)} does not fit codebooks {list(codebooks.shape)}")
    if not 2 <= centroids <= 256 or centroids & (centroids - 1):
        raise ValueError(f"codebooks have {centroids} centroids, expected 2, 4, ... 256")


def pq_tables(query: Tensor, codebooks: Tensor, *, scale: float) -> Tables:
    """Tables of query [R, G, D] for codebooks [R, M, C, D / M]; computed in float64 so every build agrees."""
    rows, heads, _ = query.shape
    _, subspaces, centroids, width = codebooks.shape
    parts = query.double().reshape(rows, heads, subspaces, width)
    logits = torch.einsum("rgmd,rmcd->rgmc", parts * scale, codebooks.double())
    if not (logits.abs() < 1e30).all():
        raise ValueError("query or codebooks hold values that are not finite")
    low, high = logits.amin(-1), logits.amax(-1)
    span = (high - low).amax(-1)
    top = largest_entry(subspaces, centroids.bit_length() - 1)
    unit = torch.where(span > 0, top / span, 0.0)
    entries = ((logits - low[..., None]) * unit[..., None, None] + 0.5).floor().int()
    return Tables(entries, span / top, low.sum(-1))


def softcapped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
