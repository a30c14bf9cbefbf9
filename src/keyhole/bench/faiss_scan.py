"""The scan as faiss does it: product-quantiser fast scan with its own top-k. faiss is optional."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from keyhole.tuning.timing import Candidate

FAISS = "faiss fast-scan"
_BITS = 4  # all that fast scan has
_SAMPLE = 4096  # keys the codebooks are trained on; their quality does not matter for the time


def faiss_baseline(
    keys: Tensor, query: Tensor, count: int, *, code_bits: int
) -> tuple[Candidate | None, str]:
    """Top `count` of `keys [1, Hkv, N, D]` for each of `query [Hkv, G, D]`, and a note on what was compared.

    The codes of a key take `code_bits` bits, as ours do. faiss picks for each query head, ours once for the G
    heads of a group.
    """
    if find_spec("faiss") is None:
        return None, f"{FAISS} left out: faiss is not installed (pip install 'keyhole[bench]')"
    head_dim, subspaces = keys.shape[-1], code_bits // _BITS
    if code_bits % _BITS or head_dim % subspaces:
        return (
            None,
            f"{FAISS} left out: codes of {code_bits} bits are no whole number of its {_BITS}-bit ones",
        )
    faiss = importlib.import_module("faiss")
    indexes = [_index(faiss, head.float(), subspaces) for head in keys[0]]
    queries = [head.contiguous().numpy() for head in query]
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=partial(faiss.omp_set_num_threads, 1))

    def search() -> list[Any]:
        return list(pool.map(lambda index, rows: index.search(rows, count), indexes, queries))

    moved = keys.shape[1] * keys.shape[2] * code_bits // 8
    note = (
        f"{FAISS} {faiss.__version__}: {subspaces} x {_BITS}-bit codes, KV heads shared among {threads} "
        "threads, a list for each query head"
    )
    return Candidate(FAISS, "faiss", search, moved, count), note


def _index(faiss: Any, keys: Tensor, subspaces: int) -> Any:
    index = faiss.IndexPQFastScan(keys.shape[-1], subspaces, _BITS, faiss.METRIC_INNER_PRODUCT)
    rows = keys.numpy()
    index.train(rows[:_SAMPLE])
    index.add(rows)
    return index
