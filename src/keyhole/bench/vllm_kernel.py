"""vLLM's own attention kernel for CPUs, as its CPU backend calls it for one request's decode step."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from keyhole.tuning.timing import Candidate

VLLM = "vLLM's CPU kernel"


def vllm_candidate(
    query: Tensor, keys: Tensor, values: Tensor, table: Tensor, block_size: int, scale: float
) -> Candidate | None:
    """Attention of `query [1, H, 1, D]` over `keys`, `values [1, Hkv, N, D]` in vLLM's own pages.

    What vLLM plans once a step for all layers is not timed. None where vLLM is not installed.

    Args:
        table: the blocks that hold the tokens, int32 `[width]`.
    """
    if find_spec("vllm") is None:
        return None
    from vllm import _custom_ops as ops  # pyright: ignore[reportMissingImports]

    heads, tokens, size = keys.shape[1:]
    lengths = torch.tensor([tokens], dtype=torch.int32)
    begins = torch.tensor([0, 1], dtype=torch.int32)
    isa = _instructions(query.dtype, block_size)
    cached = _pages(ops, keys, values, table, block_size, isa)
    plan = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=1, num_heads=query.shape[1], num_kv_heads=heads, head_dim=size, seq_lens=lengths,
        dtype=query.dtype, query_start_loc=begins, causal=True, sliding_window_size=-1, isa=isa,
        enable_kv_split=True,
    )  # fmt: skip
    out = torch.empty(1, query.shape[1], size, dtype=query.dtype)

    def run() -> Tensor:
        ops.cpu_attention_with_kv_cache(
            query=query[:, :, 0], key_cache=cached[0], value_cache=cached[1], output=out,
            query_start_loc=begins, seq_lens=lengths, scale=scale, causal=True, alibi_slopes=None,
            sliding_window=-1, block_table=table.unsqueeze(0), softcap=0.0, scheduler_metadata=plan,
            s_aux=None,
        )  # fmt: skip
        return out.unsqueeze(2)

    return Candidate(VLLM, f"vllm {isa}", run, keys.nbytes + values.nbytes, tokens)


def _pages(
    ops: Any, keys: Tensor, values: Tensor, table: Tensor, block_size: int, isa: str
) -> tuple[Tensor, ...]:
    """Key and value pages, of which the kernel alone knows how they are laid out inside."""
    heads, tokens, size = keys.shape[1:]
    pages = torch.zeros(len(table), heads, 2 * block_size, size, dtype=keys.dtype)
    cached = pages.chunk(2, dim=2)
    slots = torch.arange(tokens)
    places = table[slots // block_size].long() * block_size + slots % block_size
    ops.cpu_attn_reshape_and_cache(keys[0].transpose(0, 1), values[0].transpose(0, 1), *cached, places, isa)
    return cached


def _instructions(dtype: torch.dtype, block_size: int) -> str:
    """What vLLM takes on x86, of blocks of a multiple of 32 tokens."""
    if block_size % 32:
        raise ValueError(f"block_size={block_size} is not a multiple of 32, which vLLM's CPU kernel needs")
    amx = torch.cpu._is_amx_tile_supported() and dtype == torch.bfloat16
    return "amx" if amx else "vec"
