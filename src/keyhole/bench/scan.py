"""`bench scan`: ranking all tokens by their product-quantiser codes and picking the best."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.bench.case import Case
from keyhole.bench.checks import CheckFailedError
from keyhole.bench.dense import dense_baselines
from keyhole.bench.faiss_scan import faiss_baseline
from keyhole.bench.layers import layer_sizes, require_layer_memory
from keyhole.bench.result import Result, compare
from keyhole.core.budget import Budget
from keyhole.methods.pqcache import PQCache
from keyhole.methods.recipe import Recipe
from keyhole.selection.product import default_subspaces
from keyhole.tuning.machine import implementation
from keyhole.tuning.timing import CacheFlusher, Candidate

_CHUNK = 65_536
_LOST = 1e-4  # share of the estimated attention that another order of nearly equal tokens may lose


class Quantiser(NamedTuple):
    """What decides how long a scan takes."""

    subspaces: int
    bits: int
    budget: Budget


class Codes(NamedTuple):
    """Random codes: for the time of a scan, what they stand for does not matter."""

    codebooks: Tensor  # float32 [Hkv, M, C, D / M]
    buffer: Tensor  # uint8 [Hkv, blocks, bytes]


@torch.no_grad()
def scan(
    case: Case, method: str | Recipe, *, rounds: int, flusher: CacheFlusher, impl: str = "auto"
) -> list[Result]:
    """Time `pq_select` against torch's dense calls and, where it is installed, faiss' fast scan.

    Raises:
        ValueError: the method has no product quantiser, or the case does not fit into memory.
        CheckFailedError: the choice is not the best one by the estimated logits.
    """
    recipe = case.recipe(method)
    coder = _quantiser(recipe, case.head_dim)
    require_layer_memory(case)
    source = case.source()
    query = source.query(case.query_heads)
    keys, values = source.keys_values(case.tokens)
    codes = _random_codes(case, coder)
    rows = query.float().reshape(case.kv_heads, -1, case.head_dim)
    limit = coder.budget.limit(case.tokens)

    def pick(impl: str) -> kernels.Picked:
        return kernels.pq_select(
            rows,
            codes.codebooks,
            codes.buffer,
            0,
            case.tokens,
            k=limit if coder.budget.mass is None else None,
            mass=coder.budget.mass,
            floor=min(coder.budget.floor, limit),
            cap=limit,
            scale=case.logits.scale,
            impl=impl,
        )

    picked = pick(impl)
    check_picked(picked, pick("reference"), rows, codes, case)
    name = implementation() if impl == "auto" else impl
    read = round(float(picked.counts.float().mean()))
    moved = codes.buffer.nbytes + codes.codebooks.nbytes
    candidate = Candidate(str(recipe), name, lambda: pick(impl), moved, read)
    baselines = dense_baselines(query, keys, values, case.logits.scale)
    peer, note = faiss_baseline(keys, rows, read, code_bits=coder.subspaces * coder.bits)
    baselines += [peer] if peer else []
    return [
        compare(
            "scan", layer_sizes(case), [candidate], baselines, rounds=rounds, flusher=flusher, notes=[note]
        )
    ]


def check_picked(
    found: kernels.Picked, expected: kernels.Picked, query: Tensor, codes: Codes, case: Case
) -> None:
    """Compare a choice with the reference's: as many slots, ascending, holding as much estimated attention.

    Raises:
        CheckFailedError: they differ by more than the order of nearly equal tokens.
    """
    logits = kernels.pq_scores(
        query, codes.codebooks, codes.buffer, case.tokens, scale=case.logits.scale, impl="reference"
    )
    share = logits.double().softmax(-1).mean(1)
    for row in range(share.shape[0]):
        slots, best = (p.slots[row, : int(p.counts[row])].long() for p in (found, expected))
        fits = (
            bool((slots.diff() > 0).all()) and bool((slots >= 0).all()) and bool((slots < case.tokens).all())
        )
        held = float(share[row, slots].sum()) if fits else 0.0
        least = float(share[row, best].sum()) * (1 - _LOST)
        # A mass budget may end one token earlier or later.
        if not fits or abs(slots.numel() - best.numel()) > 1 or held < least - _LOST:
            raise CheckFailedError(
                f"scan picked {slots.numel()} slots of KV head {row} holding {held:.4f} of the estimated "
                f"attention, the reference {best.numel()} holding {least:.4f}; no time is reported"
            )


def _quantiser(recipe: Recipe, head_dim: int) -> Quantiser:
    for stage in recipe.stages:
        if isinstance(stage, PQCache):
            return Quantiser(stage.subspaces or default_subspaces(head_dim), stage.bits, stage.budget)
    raise ValueError(f"{recipe} has no product quantiser to scan; give --method pqcache(...)")


def _random_codes(case: Case, coder: Quantiser) -> Codes:
    generator = torch.Generator().manual_seed(case.seed)
    centroids = 2**coder.bits
    shape = (case.kv_heads, coder.subspaces, centroids, case.head_dim // coder.subspaces)
    buffer = kernels.allocate_codes(case.kv_heads, case.tokens, coder.subspaces, coder.bits)
    for start in range(0, case.tokens, _CHUNK):
        size = (case.kv_heads, min(_CHUNK, case.tokens - start), coder.subspaces)
        drawn = torch.randint(centroids, size, dtype=torch.uint8, generator=generator)
        kernels.write_codes(buffer, start, drawn, bits=coder.bits)
    return Codes(torch.randn(shape, generator=generator), buffer)
