"""Times a method's decode step and the dense one at the lengths where they may cross."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch

from keyhole.attention import Logits
from keyhole.cache.layer import LayerCache
from keyhole.methods.recipe import Recipe
from keyhole.tuning.crossing import Point
from keyhole.tuning.synthetic import Synthetic
from keyhole.tuning.timing import CacheFlusher, Candidate, interleave

LENGTHS = tuple(512 << doubling for doubling in range(8))
_MOST = 4 * LENGTHS[-1]  # tokens of all sequences together
_ROUNDS = 7
SECONDS = 4.0  # no further length is begun after that
_CHEAPEST = {"iterations": 1}  # options that decide how good an index is, not how long a step takes

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Heads:
    """The sizes of one attention layer, what computes it, and for how many sequences at once."""

    query_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("query_heads", "kv_heads", "head_dim", "value_dim", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is out of range; give at least 1")
        if self.query_heads % self.kv_heads:
            raise ValueError(
                f"{self.query_heads} query heads are no multiple of {self.kv_heads} KV heads; give one"
            )


class Search(NamedTuple):
    """What was measured, ascending in length, and whether that settles where the crossing is."""

    points: list[Point]
    settled: bool


@torch.no_grad()
def search(
    recipe: Recipe,
    heads: Heads,
    *,
    lengths: Sequence[int] = LENGTHS,
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> Search:
    """Time both steps at the lengths that a binary search for the crossing asks for, until time is up.

    Lengths at which the method reads everything anyway count as slower, and have no point.
    """
    started = time.perf_counter()
    source = Synthetic(
        heads.kv_heads, heads.head_dim, value_dim=heads.value_dim, dtype=heads.dtype, device=heads.device,
        batch=heads.batch,
    )  # fmt: skip
    lengths = [tokens for tokens in lengths if tokens * heads.batch <= _MOST] or lengths[:1]
    layer, flusher = _quick(recipe).layers(1)[0], CacheFlusher(device=heads.device)
    points: list[Point] = []
    slower, faster = -1, len(lengths)
    settled = False
    while not settled and time.perf_counter() - started < seconds:
        middle = (slower + faster) // 2
        _resize(layer, lengths[middle], source)
        point = _point(layer, source, heads, flusher)
        if point is not None:
            points = sorted([*points, point])
        if point is not None and point.loss < 0:
            faster = middle
        else:
            slower = middle
        settled = faster - slower == 1 or _parting(points)
        if progress is not None:
            progress(len(lengths) - (faster - slower - 1), len(lengths))
    return Search(points, settled)


def _parting(points: Sequence[Point]) -> bool:
    """Whether selecting loses at the two longest lengths, and at the longer one more."""
    return len(points) > 1 and 0 <= points[-2].loss <= points[-1].loss


def _resize(layer: LayerCache, tokens: int, source: Synthetic) -> None:
    """Let a layer hold so many tokens, indexed if its method wants an index at that length."""
    if tokens < layer.length:
        layer.crop(tokens)
    else:
        layer.append(*source.keys_values(tokens - layer.length))
    layer.prepare()


def _point(layer: LayerCache, source: Synthetic, heads: Heads, flusher: CacheFlusher) -> Point | None:
    """Time a step of `layer`, and one that reads everything from the same storage; None if both do that."""
    dense = LayerCache(layer.prefill, layer.storage)
    query, (key, value) = source.query(heads.query_heads), source.keys_values(1)
    tokens, logits = layer.length, Logits(heads.head_dim**-0.5)

    def candidate(cache: LayerCache) -> Candidate:
        def run() -> None:
            cache.append(key, value)
            cache.attend(query, logits)

        return Candidate("", "", run, 0, 0, after=lambda: cache.crop(tokens))

    selective = candidate(layer)
    with layer.observed() as seen:
        selective.run()
    selective.after()
    if not seen:
        return None
    times = interleave([selective, candidate(dense)], rounds=_ROUNDS, flusher=flusher)
    return Point(tokens, times[0].median, times[1].median)


def _quick(recipe: Recipe) -> Recipe:
    """The recipe with an index that is quickly built."""
    stages = []
    for stage in recipe.stages:
        known = {field.name for field in fields(stage)}
        stages.append(replace(stage, **{name: value for name, value in _CHEAPEST.items() if name in known}))
    return Recipe(tuple(stages))
