"""Benchmarks of one attention layer, and of the operations in it."""

from __future__ import annotations

from typing import Annotated

import typer

from keyhole.cli.bench import options
from keyhole.cli.bench.run import Run
from keyhole.cli.options import Quiet, Threads


def decode(
    context: typer.Context,
    tokens: options.Tokens = options.TOKENS,
    query_heads: options.QueryHeads = 32,
    kv_heads: options.KVHeads = 8,
    head_dim: options.HeadDim = 128,
    dtype: options.Dtype = "float32",
    method: options.Method = options.METHOD,
    read_tokens: options.ReadTokens = options.READ_TOKENS,
    rounds: options.Rounds = options.ROUNDS,
    threads: Threads = None,
    seed: options.Seed = 0,
    json_file: options.Json = None,
    quiet: Quiet = False,
) -> None:
    """One layer's decode step: append a token, select, attend."""
    from keyhole.bench.case import Case
    from keyhole.bench.decode import decode as measure

    case = Case(tokens, query_heads, kv_heads, head_dim, dtype, read_tokens, seed)
    run = Run(context, rounds, threads, json_file, quiet)
    run(lambda flusher: measure(case, method, rounds=rounds, flusher=flusher))


def scan(
    context: typer.Context,
    tokens: options.Tokens = options.TOKENS,
    query_heads: options.QueryHeads = 32,
    kv_heads: options.KVHeads = 8,
    head_dim: options.HeadDim = 128,
    dtype: options.Dtype = "float32",
    method: options.Method = options.METHOD,
    read_tokens: options.ReadTokens = options.READ_TOKENS,
    impl: options.Impl = "auto",
    rounds: options.Rounds = options.ROUNDS,
    threads: Threads = None,
    seed: options.Seed = 0,
    json_file: options.Json = None,
    quiet: Quiet = False,
) -> None:
    """Ranking all tokens by product-quantised codes and picking the best, also against faiss."""
    from keyhole.bench.case import Case
    from keyhole.bench.scan import scan as measure

    case = Case(tokens, query_heads, kv_heads, head_dim, dtype, read_tokens, seed)
    run = Run(context, rounds, threads, json_file, quiet)
    run(lambda flusher: measure(case, method, rounds=rounds, flusher=flusher, impl=impl))


def gather(
    context: typer.Context,
    tokens: options.Tokens = options.TOKENS,
    query_heads: options.QueryHeads = 32,
    kv_heads: options.KVHeads = 8,
    head_dim: options.HeadDim = 128,
    dtype: options.Dtype = "float32",
    read_tokens: options.ReadTokens = options.READ_TOKENS,
    impl: options.Impl = "auto",
    rounds: options.Rounds = options.ROUNDS,
    threads: Threads = None,
    seed: options.Seed = 0,
    json_file: options.Json = None,
    quiet: Quiet = False,
) -> None:
    """Exact attention over selected tokens at scattered positions."""
    from keyhole.bench.case import Case
    from keyhole.bench.gather import gather as measure

    case = Case(tokens, query_heads, kv_heads, head_dim, dtype, read_tokens, seed)
    run = Run(context, rounds, threads, json_file, quiet)
    run(lambda flusher: measure(case, rounds=rounds, flusher=flusher, impl=impl))


def build(
    context: typer.Context,
    tokens: options.Tokens = options.TOKENS,
    query_heads: options.QueryHeads = 32,
    kv_heads: options.KVHeads = 8,
    head_dim: options.HeadDim = 128,
    dtype: options.Dtype = "float32",
    method: options.Method = options.METHOD,
    rounds: options.Rounds = 3,
    threads: Threads = None,
    seed: options.Seed = 0,
    json_file: options.Json = None,
    quiet: Quiet = False,
) -> None:
    """Indexing the keys of one layer, against dense attention over its prompt."""
    from keyhole.bench.build import build as measure
    from keyhole.bench.case import Case

    case = Case(tokens, query_heads, kv_heads, head_dim, dtype, 0, seed)
    run = Run(context, rounds, threads, json_file, quiet)
    run(lambda flusher: measure(case, method, rounds=rounds, flusher=flusher))


def paged(
    context: typer.Context,
    tokens: options.Tokens = options.TOKENS,
    query_heads: options.QueryHeads = 32,
    kv_heads: options.KVHeads = 8,
    head_dim: options.HeadDim = 128,
    dtype: options.Dtype = "bfloat16",
    method: options.Method = options.METHOD,
    read_tokens: options.ReadTokens = options.READ_TOKENS,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens of a page.")] = 128,
    rounds: options.Rounds = options.ROUNDS,
    threads: Threads = None,
    seed: options.Seed = 0,
    json_file: options.Json = None,
    quiet: Quiet = False,
) -> None:
    """One layer's decode step over an inference engine's pages, also against vLLM's CPU kernel."""
    from keyhole.bench.case import Case
    from keyhole.bench.paged import paged as measure

    case = Case(tokens, query_heads, kv_heads, head_dim, dtype, read_tokens, seed)
    run = Run(context, rounds, threads, json_file, quiet)
    run(lambda flusher: measure(case, method, block_size=block_size, rounds=rounds, flusher=flusher))
