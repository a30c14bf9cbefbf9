"""Layer caches filled with synthetic tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.bench.case import Case
from keyhole.bench.result import Sizes
from keyhole.cache.evicting import EvictingLayer
from keyhole.cache.layer import LayerCache
from keyhole.cache.prompted import SHOWN, Prompted
from keyhole.methods.recipe import Recipe
from keyhole.tuning.machine import implementation, require_memory
from keyhole.tuning.synthetic import Synthetic
from keyhole.tuning.timing import Candidate

_WORKING = 512 << 20  # bytes for the eviction buffer and temporaries


class NewToken(NamedTuple):
    """What a decode step brings: `query [B, H, 1, D]`, `key` and `value [B, Hkv, 1, D]`."""

    query: Tensor
    key: Tensor
    value: Tensor


def filled_layer(case: Case, recipe: Recipe, source: Synthetic) -> LayerCache:
    """One layer that holds the tokens of a case, not yet indexed.

    Raises:
        ValueError: the case does not fit into memory.
    """
    require_layer_memory(case, copies=2)  # the drawn tokens exist twice while they are stored
    layer = recipe.layers(1)[0]
    fill(layer, *source.keys_values(case.tokens), case, source)
    return layer


def fill(layer: LayerCache, keys: Tensor, values: Tensor, case: Case, source: Synthetic) -> None:
    """Let a layer hold a prompt's keys and values, and see the newest queries of it."""
    layer.append(keys, values)
    queries = [source.query(case.query_heads) for _ in range(SHOWN)]
    layer.see(Prompted(torch.cat(queries, dim=2), case.logits))


def keeps_its_size(layer: LayerCache) -> bool:
    """Whether a layer drops a token for each that comes: such a step needs not be taken back."""
    return isinstance(layer, EvictingLayer) and layer.retention.policy.every == 1


def require_layer_memory(case: Case, copies: int = 1) -> None:
    """Refuse a layer whose keys and values, so many times, do not fit into memory.

    Raises:
        ValueError: more is needed than is free.
    """
    needed = copies * case.cache_bytes + _WORKING
    require_memory(f"a layer with {case.tokens} tokens", needed, torch.device(case.device))


def new_token(case: Case, source: Synthetic) -> NewToken:
    """The next token of a stream, and its query."""
    return NewToken(source.query(case.query_heads), *source.keys_values(1))


def step_candidate(case: Case, recipe: Recipe, layer: LayerCache, token: NewToken) -> Candidate:
    """One decode step: append a token, attend. It is forgotten after each run, so that all runs are alike."""
    tokens = layer.length

    def run() -> Tensor:
        layer.append(token.key, token.value)
        return layer.attend(token.query, case.logits)

    def forget() -> None:
        if not keeps_its_size(layer):
            layer.crop(tokens)

    run()
    forget()
    moved, read = step_usage(layer, run)
    forget()
    return Candidate(str(recipe), layer_implementation(layer), run, moved, read, after=forget)


def layer_implementation(layer: LayerCache) -> str:
    """Who computes a layer's steps: torch where all is read from where it came."""
    plain = layer.selector is None and not isinstance(layer, EvictingLayer)
    return "torch" if plain else implementation()


def step_usage(layer: LayerCache, run: Callable[[], object]) -> tuple[float, int]:
    """Bytes that one call of `run` moves, and the tokens it reads beside those always read."""
    bytes_before, read_before = layer.usage.bytes, layer.usage.read
    with layer.observed() as seen:
        run()
    moved, read = layer.usage.bytes - bytes_before, layer.usage.read - read_before
    if seen:
        read = float(seen[0].read.selection.counts.float().mean())
    return moved, round(read)


def layer_sizes(case: Case) -> Sizes:
    """The sizes of a case, as a row states them."""
    return Sizes(case.tokens, case.query_heads, case.kv_heads, case.head_dim, case.dtype, case.batch)
