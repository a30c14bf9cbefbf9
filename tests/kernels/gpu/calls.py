"""A call of each function in kernels/gpu, of the sizes and dtypes that matter on a GPU.

The tensors lie on the CPU: `compiling.py` compiles what the calls launch, and launches nothing.
"""

import torch

from keyhole.kernels.codes import allocate_codes
from keyhole.kernels.gpu.assign import assign
from keyhole.kernels.gpu.exact_scores import exact_scores
from keyhole.kernels.gpu.page_slots import page_slots
from keyhole.kernels.gpu.pooled_attention import pooled_attention
from keyhole.kernels.gpu.pq_codes import write_codes
from keyhole.kernels.gpu.pq_scores import pq_scores
from keyhole.kernels.gpu.pq_select import pq_select
from keyhole.kernels.gpu.top_slots import top_slots
from keyhole.kernels.page_slots import Allowed, Paged
from keyhole.kernels.pooled_attention import Pooling, Span
from keyhole.kernels.pq_select_reference import Budget

BF16 = torch.bfloat16


def _exact_scores() -> None:
    exact_scores(torch.zeros(8, 4, 128, dtype=BF16), torch.zeros(8, 4096, 128, dtype=BF16), 0.1)
    exact_scores(torch.zeros(8, 4, 128), torch.zeros(8, 4096, 128), 0.1)
    exact_scores(torch.zeros(8, 8, 256), torch.zeros(8, 8192, 256, dtype=BF16), 0.1)


def _index(heads: int, subspaces: int, bits: int, slots: int) -> tuple[torch.Tensor, ...]:
    codebooks = torch.zeros(8, subspaces, 1 << bits, 128 // subspaces)
    return torch.zeros(8, heads, 128), codebooks, allocate_codes(8, slots, subspaces, bits)


def _pq_scores() -> None:
    for softcap in (None, 30.0):
        pq_scores(*_index(4, 32, 4, 131072), 131072, 0.1, softcap)
    pq_scores(*_index(7, 16, 8, 4096), 4096, 0.1, None)


def _pq_select() -> None:
    bounds = torch.zeros(2, 8, dtype=torch.int32)
    for heads, subspaces, bits, slots in ((4, 32, 4, 131072), (16, 16, 8, 4096), (1, 32, 4, 1 << 20)):
        index = _index(heads, subspaces, bits, slots)
        anchors = torch.zeros(8, heads)
        for budget in (Budget(2048, 2048, 0.0), Budget(64, 4096, 0.9)):
            pq_select(*index, *bounds, slots, 0.1, None, anchors, budget)


def _assign() -> None:
    for dtype in (BF16, torch.float32):
        keys = torch.zeros(8, 8192, 128, dtype=dtype)
        for subspaces, centroids in ((32, 16), (16, 256), (1, 1024)):
            assign(keys, torch.zeros(8, subspaces, centroids, 128 // subspaces), torch.uint8)


def _write_codes() -> None:
    for bits in (4, 8):
        for tokens in (1, 8192):
            codes = torch.zeros(8, tokens, 32, dtype=torch.uint8)
            write_codes(allocate_codes(8, 131072, 32, bits), torch.zeros(1, dtype=torch.int64), codes, bits)


def _top_slots() -> None:
    for rows, slots in ((8, 131072), (1, 1 << 20), (8, 8192), (1, 16384), (1, 100)):
        top_slots(torch.zeros(rows, slots), 99)


def _page_slots() -> None:
    for lists, page, count in ((8, 16, 131), (1, 16, 131), (8, 1, 2051)):
        pages, first = 131072 // page, torch.zeros(1, dtype=torch.int32)
        places = torch.zeros(1, lists, count, dtype=torch.int64)
        scores, shares = torch.zeros(1, lists, pages), torch.zeros(1, 8, pages)
        for mass in (None, 0.9):
            allowed = Allowed(torch.zeros(1, dtype=torch.int64), 2048, mass)
            page_slots(places, scores, shares, torch.zeros(1, 8), Paged(first, 131000, page), allowed)


def _pooled_attention() -> None:
    zeros, extra = torch.zeros(1, dtype=torch.int32), torch.zeros(1, 32)
    span = Span(zeros, 8192, zeros, 8000)
    votes, pages = Pooling(0.1, sharpness=9.0, per_head=True), Pooling(0.1, 30.0, page=16, largest=True)
    for dtype, size, heads in ((BF16, 128, 8), (BF16, 64, 2), (torch.float32, 256, 8)):
        query, keys = torch.zeros(1, 32, size, dtype=dtype), torch.zeros(1, heads, 8192, size, dtype=dtype)
        pooled_attention(query, keys, span, votes, (None, extra))
        pooled_attention(query, keys, span, pages, (None, None))


CALLS = {
    "assign": _assign,
    "exact_scores": _exact_scores,
    "page_slots": _page_slots,
    "pooled_attention": _pooled_attention,
    "pq_scores": _pq_scores,
    "pq_select": _pq_select,
    "top_slots": _top_slots,
    "write_codes": _write_codes,
}
