"""A call of each function in kernels/gpu, of the sizes and dtypes that matter on a GPU.

The tensors lie on the CPU: `compiling.py` compiles what the calls launch, and launches nothing.
"""

import torch

from keyhole.kernels import Reach
from keyhole.kernels.attention.triton.gather import gather_attention, paged_gather_attention
from keyhole.kernels.attention.triton.merge import merge_attention
from keyhole.kernels.attention.triton.packed import packed_attention
from keyhole.kernels.attention.triton.pooled import pooled_attention
from keyhole.kernels.attention.types import Codes, Layout, Pooling, Span
from keyhole.kernels.ffn.triton.matvec import matvec_skip_columns, matvec_skip_rows
from keyhole.kernels.lowrank.triton.rebuild_keys import rebuild_keys
from keyhole.kernels.pq.codes import allocate_codes
from keyhole.kernels.pq.triton.assign import assign
from keyhole.kernels.pq.triton.codes import write_codes
from keyhole.kernels.pq.triton.scores import pq_scores
from keyhole.kernels.pq.triton.select import pq_select
from keyhole.kernels.pq.types import Budget
from keyhole.kernels.ranking.triton.exact_scores import exact_scores
from keyhole.kernels.ranking.triton.page_slots import page_slots
from keyhole.kernels.ranking.triton.top_slots import top_slots
from keyhole.kernels.ranking.types import Allowed, Paged
from keyhole.kernels.resident_rows.api import Extent, ResidentFound, ResidentState, resident_directory
from keyhole.kernels.resident_rows.triton.copy import read_rows, resident_append, resident_fill
from keyhole.kernels.resident_rows.triton.lookup import resident_lookup
from keyhole.kernels.sale.triton.attention import sale_attention

BF16 = torch.bfloat16


def _exact_scores() -> None:
    exact_scores(torch.zeros(8, 4, 128, dtype=BF16), torch.zeros(8, 4096, 128, dtype=BF16), 0, 4096, 0.1)
    exact_scores(torch.zeros(8, 4, 128), torch.zeros(8, 4096, 128), 0, 4096, 0.1)
    exact_scores(torch.zeros(8, 8, 256), torch.zeros(8, 8192, 256, dtype=BF16), 0, 8192, 0.1)
    for dtype in (BF16, torch.float32):
        pages, table = torch.zeros(256, 16, 8, 128, dtype=dtype), torch.zeros(1, 256, dtype=torch.int32)
        exact_scores(torch.zeros(8, 4, 128, dtype=dtype), pages, 0, 4000, 0.1, table)


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
    cases = (
        (128, BF16, Reach(width=32)),
        (128, BF16, Reach(width=1)),
        (128, BF16, Reach(width=1, rows=16)),
        (128, BF16, Reach(width=1, rows=16, means=True)),
        (128, BF16, Reach(width=8, rows=32, means=True)),
        (64, BF16, Reach(width=4)),
        (64, BF16, Reach(width=1, rows=16, means=True)),
        (80, torch.float16, Reach(width=1, rows=16, means=True)),
        (256, BF16, Reach(width=8)),
        (256, BF16, Reach(width=1, rows=16, means=True)),
        (128, torch.float32, Reach(width=1)),
        (128, torch.float32, Reach(width=1, rows=16, means=True)),
    )
    for size, dtype, reach in cases:
        query, tau = torch.zeros(1, 8, 128, size, dtype=dtype), torch.zeros(8)
        keys = torch.zeros(1, 2, 640, size, dtype=dtype)
        sale_attention(query, keys, keys, tau, 0.1, reach, (0,), False)


def _attend(dtype, *, size=128, heads=4, cache=None, page=0, rows=8, with_logits=False, sinks=False) -> None:
    """2,048 slots of each row."""
    query, held = torch.zeros(rows, heads, size, dtype=dtype), cache or dtype
    slots, counts = torch.zeros(rows, 2048, dtype=torch.int32), torch.zeros(rows, dtype=torch.int32)
    shape = (4096 // page, page, rows, size) if page else (rows, 4096, size)
    keys, values = torch.zeros(2, *shape, dtype=held)
    scales = torch.zeros(2, *shape[:-1]) if held == torch.int8 else (None, None)
    options = {
        "scale": 0.1, "softcap": 30.0 if sinks else None, "key_scales": scales[0], "value_scales": scales[1],
        "sink_logits": torch.zeros(rows, heads) if sinks else None,
    }  # fmt: skip
    if page:
        table = torch.zeros(1, 4096 // page, dtype=torch.int32)
        paged_gather_attention(query, keys, values, table, slots, counts, **options)
    else:
        gather_attention(query, keys, values, slots, counts, with_logits=with_logits, **options)


def _gather_attention() -> None:
    _attend(BF16)
    _attend(BF16, rows=64)
    _attend(BF16, size=80, heads=7, sinks=True)
    _attend(torch.float16, size=64, heads=16, with_logits=True)
    _attend(BF16, size=256, heads=2)
    _attend(torch.float32)
    _attend(torch.float32, size=256, heads=16)
    _attend(BF16, cache=torch.int8)
    _attend(torch.float32, cache=BF16)


def _paged_gather_attention() -> None:
    _attend(BF16, page=16)
    _attend(torch.float32, page=64)
    _attend(BF16, page=16, cache=torch.int8)
    for dtype in (BF16, torch.float32):
        keys, table = torch.zeros(256, 16, 8, 128, dtype=dtype), torch.zeros(2, 128, dtype=torch.int32)
        paged_gather_attention(
            torch.zeros(16, 4, 128, dtype=dtype), keys, keys, table, None, torch.zeros(16, dtype=torch.int32),
            scale=0.1, softcap=None, sink_logits=None, key_scales=None, value_scales=None,
        )  # fmt: skip


def _packed(bits, *, size=128, heads=4, dtype=BF16) -> None:
    shape, width = (1, 8, 64, 64), -(-size * bits // 8)
    keys, values = (
        Codes(torch.zeros(*shape, width, dtype=torch.uint8), *torch.zeros(2, *ranges))
        for ranges in ((*shape[:3], size), shape)
    )
    slots, counts = torch.zeros(8, 2048, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    query = torch.zeros(8, heads, size, dtype=dtype)
    layout = Layout(bits, size, size)
    packed_attention(query, keys, values, layout, slots, counts, scale=0.1, softcap=None)


def _packed_attention() -> None:
    _packed(8)
    _packed(4)
    _packed(8, size=80, heads=7)
    _packed(8, size=256, heads=16)
    _packed(4, size=256, heads=16)
    _packed(4, dtype=torch.float32)


def _rebuild(dtype, *, size=128, rank=160, pairs=64, adjacent=False) -> None:
    slots, padding = torch.zeros(1, 8, 2048, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    coefficients, axes = torch.zeros(1, 4096, rank, dtype=dtype), torch.zeros(1, 8, size, rank)
    operands = coefficients, axes, torch.zeros(1, 8, size), slots, padding, torch.zeros(pairs)
    rebuild_keys(*operands, adjacent=adjacent)


def _rebuild_keys() -> None:
    _rebuild(BF16)
    _rebuild(BF16, adjacent=True)
    _rebuild(BF16, size=80, pairs=16, rank=100)
    _rebuild(torch.float16, size=256, pairs=128, rank=256)
    _rebuild(torch.float32, pairs=0)
    _rebuild(torch.float32, size=256, pairs=128, rank=256)


def _merge_attention() -> None:
    for dtype in (BF16, torch.float32):
        part = torch.zeros(1, 32, 128, dtype=dtype), torch.zeros(1, 32)
        merge_attention(*part, *part)


def _top_slots() -> None:
    for rows, slots in ((8, 131072), (1, 1 << 20), (8, 8192), (1, 16384), (1, 100)):
        top_slots(torch.zeros(rows, slots), 99)


def _page_slots() -> None:
    for lists, page, count in ((8, 16, 131), (1, 16, 131), (8, 1, 2051)):
        pages, bound = 131072 // page, torch.zeros(1, dtype=torch.int32)
        places = torch.zeros(1, lists, count, dtype=torch.int64)
        scores, shares = torch.zeros(1, lists, pages), torch.zeros(1, 8, pages)
        for mass in (None, 0.9):
            allowed = Allowed(torch.zeros(1, dtype=torch.int64), 2048, mass)
            page_slots(places, scores, shares, torch.zeros(1, 8), Paged(bound, bound, 131000, page), allowed)


def _pooled_attention() -> None:
    bound, extra = torch.zeros(1, dtype=torch.int32), torch.zeros(1, 32)
    span = Span(bound, bound, bound, bound, 8000)
    votes, pages = Pooling(0.1, sharpness=9.0, per_head=True), Pooling(0.1, 30.0, page=16, largest=True)
    for dtype, size, heads in ((BF16, 128, 8), (BF16, 64, 2), (torch.float32, 256, 8)):
        query, keys = torch.zeros(1, 32, size, dtype=dtype), torch.zeros(1, heads, 8192, size, dtype=dtype)
        pooled_attention(query, keys, span, votes, (None, extra))
        pooled_attention(query, keys, span, pages, (None, None))
        blocks, table = torch.zeros(512, 16, heads, size, dtype=dtype), torch.zeros(1, 512, dtype=torch.int32)
        pooled_attention(query, blocks, span, pages, (None, None), table)


def _directory(places: int) -> ResidentState:
    return resident_directory(8, 131_072, places, 256, torch.device("cpu"))


def _resident_lookup() -> None:
    for slots, places in ((96, 4096), (2048, 4096), (13_107, 26_214)):
        resident_lookup(
            _directory(places), torch.zeros(8, slots, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
        )


def _resident_copies() -> None:
    """Keys and values of 128 numbers each, and of 80; a width that only pairs of bytes divide."""
    found = ResidentFound(*torch.zeros(3, 8, 2048, dtype=torch.int32), torch.zeros(8, dtype=torch.int32))
    for width in (256, 160, 33):
        pool, held = torch.zeros(8, 4096 + 256, width, dtype=BF16), torch.zeros(8, 8192, width, dtype=BF16)
        resident_fill(pool, held, found)
        resident_append(_directory(4096), pool, held, pool[:, :1])
        read_rows(torch.zeros(8, 8000, width // 2, dtype=BF16), held, Extent(192, 8192, 0, width // 2))


CALLS = {
    "assign": _assign,
    "exact_scores": _exact_scores,
    "gather_attention": _gather_attention,
    "resident_copies": _resident_copies,
    "resident_lookup": _resident_lookup,
    "matvec": _matvec,
    "merge_attention": _merge_attention,
    "packed_attention": _packed_attention,
    "page_slots": _page_slots,
    "paged_gather_attention": _paged_gather_attention,
    "pooled_attention": _pooled_attention,
    "pq_scores": _pq_scores,
    "pq_select": _pq_select,
    "rebuild_keys": _rebuild_keys,
    "sale_attention": _sale_attention,
    "top_slots": _top_slots,
    "write_codes": _write_codes,
}
