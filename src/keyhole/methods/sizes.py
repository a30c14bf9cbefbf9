"""What a method's layer holds and reads, measured on one that is filled with random tokens."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import NamedTuple

import torch

from keyhole.attention import Logits
from keyhole.cache.layer import LayerCache
from keyhole.core.layout import regions
from keyhole.methods.base import Method, RetrievalMethod
from keyhole.methods.recipe import alone
from keyhole.selection import Step
from keyhole.storage import Footprint, make_storage

TOKENS = 10_240  # more than indexes are fitted on, so that what is fitted is as large as it gets
_MORE = 512
_QUICK = {"iterations": 1}  # decides how good an index is, not how large


class Shape(NamedTuple):
    """Sizes of one attention layer."""

    kv_heads: int = 8
    keys: int = 128
    values: int = 128
    dtype: torch.dtype = torch.bfloat16


class Sizes(NamedTuple):
    """Bytes of one KV head.

    Attributes:
        kept: keys and values held, for each token of a longer context.
        index: index held, for each token of a longer context; spare capacity is in neither.
        scan: read to select, for each token of a longer context.
        once: read to select, whatever the length.
        row: read to attend to one token.
    """

    kept: float
    index: float
    scan: float
    once: float
    row: float


@torch.no_grad()
def measure(method: Method, shape: Shape, tokens: int = TOKENS) -> Sizes:
    """Sizes from two layers of a method, at `tokens` and a little more."""
    known = {field.name for field in fields(method)}
    method = replace(method, **{name: value for name, value in _QUICK.items() if name in known})
    short, long = (_filled(method, shape, length) for length in (tokens, tokens + _MORE))
    kept, index = (
        (_held(long, indexes=part) - _held(short, indexes=part)) / _MORE / shape.kv_heads
        for part in (False, True)
    )
    row = short.storage.token_bytes / shape.kv_heads
    if short.selector is None or not isinstance(method, RetrievalMethod):
        return Sizes(kept, index, 0.0, 0.0, row)
    (first, indexed), (second, more) = (_scanned(layer, method) for layer in (short, long))
    scan = (second - first) / (more - indexed)
    return Sizes(kept, index, scan, first - scan * indexed, row)


def _filled(method: Method, shape: Shape, tokens: int) -> LayerCache:
    """The last of two layers, so that in methods whose layers differ it is one that selects."""
    layer = alone(method).layers(2)[-1]
    generator = torch.Generator().manual_seed(0)
    keys = torch.rand(1, shape.kv_heads, tokens, shape.keys, generator=generator) - 0.5
    values = keys.new_zeros(*keys.shape[:3], shape.values)
    layer.append(keys.to(shape.dtype), values.to(shape.dtype))
    layer.prepare()
    return layer


def _held(layer: LayerCache, *, indexes: bool) -> int:
    state = layer.state().items()
    return sum(tensor.nbytes for name, tensor in state if name.startswith("selector.") == indexes)


def _scanned(layer: LayerCache, method: RetrievalMethod) -> tuple[int, int]:
    """Bytes read to select, and the tokens among which."""
    assert layer.selector is not None
    newest = layer.newest
    parts = regions(layer.length, (0,), method.sinks, method.window, newest.device)
    query, logits = newest[:, :, 0], Logits(newest.shape[-1] ** -0.5)
    lse = torch.zeros(query.shape[:2])
    step = Step(query, layer.storage, parts, lse, logits, method.budget)
    return layer.selector.bytes_read(step), parts.last


class Placed(NamedTuple):
    """Bytes of keys and values of one token and KV head: read, and held by tier."""

    row: float
    held: dict[str, float]


def measure_storage(place: str, kv_dtype: str, shape: Shape) -> Placed:
    """What a storage holds for each token of a longer context, spare capacity left out."""
    (row, first), (_, second) = (_stored(place, kv_dtype, shape, tokens) for tokens in (1024, 2048))
    held = {
        tier: (more - less) / 1024 / shape.kv_heads
        for tier, less, more in zip(Footprint._fields, first, second, strict=True)
        if more > less
    }
    return Placed(row, held)


def _stored(place: str, kv_dtype: str, shape: Shape, tokens: int) -> tuple[float, Footprint]:
    storage = make_storage(place, kv_dtype)
    storage.append(
        *(torch.zeros(1, shape.kv_heads, tokens, size).to(shape.dtype) for size in (shape.keys, shape.values))
    )
    return storage.token_bytes / shape.kv_heads, storage.footprint
