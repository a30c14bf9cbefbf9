"""Exact logits against a small index such as landmarks or codewords."""

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_native, use_triton
from keyhole.kernels.backend.native import FLOATS, TYPES, call


def exact_scores(
    query: Tensor, keys: Tensor, first: int, last: int, *, scale: float = 1.0, impl: str = "auto"
) -> Tensor:
    """Logits [R, G, last - first] (float32) of query [R, G, D] against keys [R, cap, D] in first .. last.

    R rows (batch x KV heads), G query heads of a KV head, D head size, cap slots in a row.
    """
    if (
        query.dim() != 3
        or keys.dim() != 3
        or query.shape[0] != keys.shape[0]
        or query.shape[2] != keys.shape[2]
    ):
        raise ValueError(f"keys {list(keys.shape)} do not fit query {list(query.shape)}")
    if not 0 <= first <= last <= keys.shape[1]:
        raise ValueError(f"slots {first}..{last} lie outside 0..{keys.shape[1]}")
    if use_native(impl, query, keys, supported=keys.dtype in FLOATS):
        return _native(query.float().contiguous(), keys[:, first:last], scale)
    if use_triton(impl, query, keys, supported=keys.dtype in FLOATS):
        from keyhole.kernels.ranking.triton.exact_scores import exact_scores as on_gpu

        return on_gpu(query, keys[:, first:last], scale)
    return query.float() @ keys[:, first:last].float().transpose(1, 2) * scale


def _native(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    rows, heads, size = query.shape
    keys = keys if keys.stride(2) == 1 else keys.contiguous()
    out = torch.empty(rows, heads, keys.shape[1], dtype=torch.float32)
    call(
        "kh_exact_scores", query.data_ptr(), rows, heads, size, keys.data_ptr(), TYPES[keys.dtype],
        keys.stride(0), keys.stride(1), keys.shape[1], scale, out.data_ptr(),
    )  # fmt: skip
    return out
