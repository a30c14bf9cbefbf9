"""`bench scan`: ranking all tokens by their product-quantiser codes and picking the best."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.bench.case import Case
from keyhole.bench.checks import CheckFailedError
from keyhole.bench.dense import dense_baselines
from keyhole.bench.faiss_scan import faiss_baseline
from keyhole.bench.layers import layer_sizes, require_layer_memory
from keyhole.bench.machine import implementation
from keyhole.bench.result import Result, compare
from keyhole.bench.synthetic import Synthetic
from keyhole.bench.timing import Candidate, Evictor
from keyhole.methods.pqcache import PQCache
from keyhole.methods.recipe import Recipe

_CHUNK = 65_536
_LOST = 1e-4  # share of the estimated attention that another order of nearly equal tokens may lose


class Codes(NamedTuple):
    """Random codes: for the time of a scan, what they stand for does not matter."""

    codebooks: Tensor  # float32 [Hkv, M, C, D / M]
    buffer: Tensor  # uint8 [Hkv, blocks, bytes]


@torch.no_grad()
def scan(
    case: Case, method: str | Recipe, *, rounds: int, evictor: Evictor, impl: str = "auto"
) -> list[Result]:
    """Time `pq_select` against torch's dense calls and, where it is installed, faiss' fast scan.

    Raises:
        ValueError: the method has no product quantiser, or the case does not fit into memory.
        CheckFailedError: the choice is not the best one by the estimated logits.
    """
    recipe = case.recipe(method)
    stage = _quantiser(recipe)
    require_layer_memory(case)
    source = Synthetic(case.kv_heads, case.head_dim, dtype=case.torch_dtype, seed=case.seed)
    query = source.query(case.query_heads)
    keys, values = source.keys_values(case.tokens)
    codes = _random_codes(case, stage)
    rows = query.float().reshape(case.kv_heads, -1, case.head_dim)
    limit = stage.budget.limit(case.tokens)

    def pick(impl: str) -> kernels.Picked:
        return kernels.pq_select(
            rows,
            codes.codebooks,
            codes.buffer,
            0,
            case.tokens,
            k=limit if stage.budget.mass is None else None,
            mass=stage.budget.mass,
            floor=min(stage.budget.floor, limit),
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
    peer, note = faiss_baseline(keys, rows, read, code_bits=stage.subspaces * stage.bits)
    baselines += [peer] if peer else []
    return [
        compare(
            "scan", layer_sizes(case), [candidate], baselines, rounds=rounds, evictor=evictor, notes=[note]
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


def _quantiser(recipe: Recipe) -> PQCache:
    stage = next(
        (stage for stage in recipe.stages if hasattr(stage, "subspaces") and hasattr(stage, "bits")), None
    )
    if stage is None:
        raise ValueError(f"{recipe} has no product quantiser to scan; give --method pqcache(...)")
    return cast(PQCache, stage)


def _random_codes(case: Case, stage: PQCache) -> Codes:
    generator = torch.Generator().manual_seed(case.seed)
    centroids = 2**stage.bits
    shape = (case.kv_heads, stage.subspaces, centroids, case.head_dim // stage.subspaces)
    buffer = kernels.allocate_codes(case.kv_heads, case.tokens, stage.subspaces, stage.bits)
    for start in range(0, case.tokens, _CHUNK):
        size = (case.kv_heads, min(_CHUNK, case.tokens - start), stage.subspaces)
        drawn = torch.randint(centroids, size, dtype=torch.uint8, generator=generator)
        kernels.write_codes(buffer, start, drawn, bits=stage.bits)
    return Codes(torch.randn(shape, generator=generator), buffer)
