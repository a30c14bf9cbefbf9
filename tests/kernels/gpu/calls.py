"""A call of each function in kernels/gpu, of the sizes and dtypes that matter on a GPU.

The tensors lie on the CPU: `compiling.py` compiles what the calls launch, and launches nothing.
"""

import torch

from keyhole.kernels import Reach
from keyhole.kernels.codes import allocate_codes
from keyhole.kernels.gpu.assign import assign
from keyhole.kernels.gpu.exact_scores import exact_scores
from keyhole.kernels.gpu.matvec import matvec_skip_columns, matvec_skip_rows
from keyhole.kernels.gpu.pq_codes import write_codes
from keyhole.kernels.gpu.pq_scores import pq_scores
from keyhole.kernels.gpu.pq_select import pq_select
from keyhole.kernels.gpu.sale import sale_attention
from keyhole.kernels.pq_select_reference import Budget

BF16 = torch.bfloat16


def _exact_scores() -> None:
    exact_scores(torch.zeros(8, 4, 128, dtype=BF16), torch.zeros(8, 4096, 128, dtype=BF16), 0.1)
    exact_scores(torch.zeros(8, 4, 128), torch.zeros(8, 4096, 128), 0.1)


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


def _matvec() -> None:
    for dtype in (BF16, torch.float32):
        weight, x = torch.zeros(512, 256, dtype=dtype), torch.zeros(512, dtype=dtype)
        matvec_skip_rows(weight, x[:256], x != 0)
        matvec_skip_columns(weight, x)


def _sale_attention() -> None:
    cases = ((128, BF16, 32), (128, BF16, 1), (64, BF16, 4), (256, BF16, 8), (128, torch.float32, 1))
    for size, dtype, width in cases:
        query, tau = torch.zeros(1, 8, 128, size, dtype=dtype), torch.zeros(8)
        keys = torch.zeros(1, 2, 640, size, dtype=dtype)
        sale_attention(query, keys, keys, tau, 0.1, Reach(width=width), (0,), False)


CALLS = {
    "assign": _assign,
    "exact_scores": _exact_scores,
    "matvec": _matvec,
    "pq_scores": _pq_scores,
    "pq_select": _pq_select,
    "sale_attention": _sale_attention,
    "write_codes": _write_codes,
}
