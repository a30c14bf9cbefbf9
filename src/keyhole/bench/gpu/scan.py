"""Ranking all tokens by their product-quantiser codes on a GPU: the share of the bandwidth it reaches."""

from __future__ import annotations

import torch

from keyhole import kernels
from keyhole.bench.case import Case
from keyhole.bench.gpu.graphs import graphed
from keyhole.bench.layers import filled_layer, layer_sizes
from keyhole.bench.result import Result, compare
from keyhole.kernels.pq.types import BLOCK
from keyhole.selection import ProductSelector
from keyhole.tuning.machine import implementation
from keyhole.tuning.timing import CacheFlusher, Candidate


@torch.no_grad()
def scan(case: Case, method: str, *, rounds: int, flusher: CacheFlusher) -> list[Result]:
    """Time estimated logits, and logits with the choice of `read_tokens`, against reading the codes once.

    Raises:
        ValueError: the method has no product quantiser, or the case does not fit into memory.
    """
    device = torch.device(case.device)
    recipe = case.recipe(method)
    layer = filled_layer(case, recipe, case.source())
    selector = layer.selector
    if not isinstance(selector, ProductSelector):
        raise ValueError(f"{recipe} has no product quantiser to scan; give pqcache(...)")
    layer.prepare()
    index = selector.state()
    books, codes = index["codebooks"].flatten(0, 1), index["codes"].flatten(0, 1)
    rows = case.source().query(case.query_heads).reshape(len(books), -1, case.head_dim).float()
    first = torch.zeros(len(books), dtype=torch.int32, device=device)
    last, scale = torch.full_like(first, case.tokens), case.logits.scale

    def scores() -> object:
        return kernels.pq_scores(rows, books, codes, case.tokens, scale=scale)

    def select() -> object:
        return kernels.pq_select(rows, books, codes, first, last, k=case.read_tokens, scale=scale)

    blocks = codes[:, : -(-case.tokens // BLOCK)]
    moved, impl = blocks.nbytes + books.nbytes, implementation(device)
    written = rows.shape[0] * rows.shape[1] * case.tokens * 4
    ours = [
        Candidate("pq_select", impl, select, moved, case.read_tokens),
        Candidate("pq_scores", impl, scores, moved + written, case.tokens),
    ]

    def read() -> object:
        return blocks.sum(dtype=torch.int32)

    reading = Candidate("sum of the codes", "torch", read, moved, case.tokens)
    candidates = [graphed(candidate, device) for candidate in (*ours, reading)]
    return [
        compare("scan", layer_sizes(case), candidates[:-1], candidates[-1:], rounds=rounds, flusher=flusher)
    ]
