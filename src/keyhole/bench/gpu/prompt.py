"""Attention over long prompts on a GPU by SALE, against flash attention.

Legend: H query heads, Hkv KV heads, T tokens, D head size.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole import kernels
from keyhole.bench.case import Case
from keyhole.bench.layers import layer_sizes
from keyhole.bench.result import Result, compare
from keyhole.kernels import Reach, SparseAttended
from keyhole.methods.sale import Sale
from keyhole.tuning.machine import implementation, require_memory
from keyhole.tuning.timing import CacheFlusher, Candidate

_TOPICS = 64  # of a text; a query attends to its own topic's keys, to the first tokens and to the newest
_STRETCH = 512  # tokens of a text that stay with a topic
_PULL = 10.0  # how far a logit within a topic is above the others, of standard deviation 1
_CHECKED = 1024  # newest queries whose error is looked at


@torch.no_grad()
def prompt(case: Case, tau: float, *, rounds: int, flusher: CacheFlusher) -> list[Result]:
    """Time SALE with one threshold for all heads over a structured prompt, all costs included.

    As the method comes, and as published: tiles of 64 queries that read or leave out blocks of keys.

    Raises:
        ValueError: the case does not fit into memory.
    """
    device = torch.device(case.device)
    query_bytes = case.cache_bytes * case.query_heads / case.kv_heads
    require_memory(f"a prompt of {case.tokens} tokens", 2 * case.cache_bytes + 2 * query_bytes, device)
    query, keys, values = structured(case)
    scale, taus = case.logits.scale, torch.full((case.query_heads,), tau, device=device)

    def sale(reach: Reach) -> SparseAttended:
        return kernels.sale_attention(query, keys, values, taus, scale=scale, reach=reach)

    def flash() -> Tensor:
        grouped = case.query_heads > case.kv_heads
        return F.scaled_dot_product_attention(
            query, keys, values, is_causal=True, scale=scale, enable_gqa=grouped
        )

    newest = slice(-min(_CHECKED, case.tokens), None)
    exact = flash()[:, :, newest].float()
    pairs, moved = case.batch * case.query_heads * case.tokens**2 / 2, case.cache_bytes + 2 * query.nbytes
    ours, notes = [], [f"{_TOPICS} topics in stretches of {_STRETCH} tokens, drawn"]
    for method in (Sale(tau=tau), Sale(tau=tau, tile=32, rows=kernels.TILE_ROWS, means=False)):
        reach = method.reach
        found = sale(reach)
        error = float((found.out[:, :, newest].float() - exact).norm() / exact.norm())
        density = float(found.kept.sum()) * reach.rows / pairs
        notes.append(
            f"{method}: {density:.1%} of the keys are read; relative error of the newest "
            f"{-newest.start} outputs {error:.2%}"
        )
        run = partial(sale, reach)
        ours.append(Candidate(str(method), implementation(device), run, moved, case.tokens))
    baseline = Candidate("sdpa causal", "torch", flash, moved, case.tokens)
    compared = compare(
        "prompt", layer_sizes(case), ours, [baseline], rounds=rounds, flusher=flusher, notes=notes
    )
    return [compared]


def structured(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Queries `[B, H, T, D]`, keys and values `[B, Hkv, T, D]` of a text that goes from topic to topic."""
    device = torch.device(case.device)
    draw = torch.Generator(device).manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, device=device, dtype=torch.float32)

    stretches = -(-case.tokens // _STRETCH)
    topics = torch.randint(_TOPICS, (stretches,), generator=draw, device=device)
    topic = topics.repeat_interleave(_STRETCH)[: case.tokens]
    # A logit is a product over D numbers, of which the square root is taken out.
    size = (_PULL * case.head_dim**0.5) ** 0.5
    directions = F.normalize(normal(case.kv_heads, _TOPICS, case.head_dim), dim=-1) * size

    def drawn(heads: int) -> Tensor:
        groups = heads // case.kv_heads
        parts = [
            (normal(case.batch, groups, case.tokens, case.head_dim) + directions[head][topic]).to(
                case.torch_dtype
            )
            for head in range(case.kv_heads)
        ]
        return torch.cat(parts, dim=1)

    values = normal(case.batch, case.kv_heads, case.tokens, case.head_dim).to(case.torch_dtype)
    return drawn(case.query_heads), drawn(case.kv_heads), values
