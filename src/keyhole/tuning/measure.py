"""Measures decode steps of one layer, by every method that selects, over a grid of sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, Protocol

import torch

from keyhole.attention import Logits
from keyhole.cache.layer import LayerCache
from keyhole.core.budget import Budget
from keyhole.core.costs import DENSE, Heads
from keyhole.methods import METHODS, Recipe, RetrievalMethod
from keyhole.prefill import DensePrefill
from keyhole.storage import make_storage
from keyhole.tuning.synthetic import Synthetic
from keyhole.tuning.timing import CacheFlusher, Candidate, clock, cpu_clock, interleave

SHAPES = ((8, 2, 32), (32, 8, 64), (32, 8, 128))  # query heads, KV heads, size of a head
# Sequences, tokens and the share read of what is measured of each shape.
_CASES = ((1, 1024, 0.1), (1, 4096, 0.3), (1, 8192, 0.1), (4, 2048, 0.1))
# In addition, long contexts of which little is read, so that what grows with the context and what grows with
# the budget are distinguished.
_LONG = {(8, 2, 32): (1, 32_768, 0.02), (32, 8, 128): (1, 16_384, 0.02)}
FORMS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32, "int4": torch.float32}
_CPU = torch.device("cpu")
_FLUSHED = 32 << 20  # bytes read before each step: more than a core's own caches hold
_CHEAPEST = {"iterations": 1}  # options that decide how good an index is, not how long a step takes

Shape = tuple[int, int, int]


class Progress(Protocol):
    """Called with what is measured now, how much is done and how much there is."""

    def __call__(self, doing: str, done: float, total: float | None) -> None: ...


class Point(NamedTuple):
    """Median microseconds of CPU time of a step, of the method and of the dense one beside it."""

    form: str
    method: str
    query_heads: int
    kv_heads: int
    head_dim: int
    batch: int
    tokens: int
    budget: float
    selecting: float
    dense: float

    @property
    def heads(self) -> Heads:
        sizes = self.query_heads, self.kv_heads, self.head_dim, self.head_dim
        return Heads(*sizes, FORMS[self.form], self.batch)

    @property
    def method_read(self) -> RetrievalMethod:
        return method_of(self.method, self.form, self.budget)


def method_of(name: str, form: str, budget: float) -> RetrievalMethod:
    """A method that selects a share of the context at any length, its keys and values in a form."""
    kind: Any = METHODS[name]
    known = {field.name for field in fields(kind)}
    cheap = {option: value for option, value in _CHEAPEST.items() if option in known}
    kv_dtype = form if form.startswith("int") else "auto"
    more = {"keep": Budget(fraction=1.0)} if "keep" in known else {}
    return kind(budget=Budget(fraction=budget), dense_below=0, kv_dtype=kv_dtype, **cheap, **more)


def measured_methods() -> list[str]:
    """Methods whose steps can be measured on one layer."""
    kinds = ((name, kind) for name, kind in METHODS.items() if issubclass(kind, RetrievalMethod))
    return [name for name, kind in kinds if kind.pays_from is None and not kind.required]


@torch.no_grad()
def measure(
    methods: Sequence[str],
    *,
    forms: Sequence[str] = tuple(FORMS),
    shapes: Sequence[Shape] = SHAPES,
    device: torch.device = _CPU,
    rounds: int = 7,
    progress: Progress | None = None,
) -> list[Point]:
    """Time steps on one thread, by CPU time, so that other processes on the machine cost little.

    The caller sets torch to one thread. On a GPU it is the time until the work is done.
    """
    flusher = CacheFlusher(_FLUSHED if device.type == "cpu" else 0, device)
    jobs = list(_jobs(methods, forms, shapes))
    points: list[Point] = []
    for done, (form, name, shape) in enumerate(jobs):
        if progress is not None:
            progress(f"{name}, {form}", done, len(jobs))
        points += _of_shape(form, name, shape, flusher, rounds)
    return points


def _jobs(
    methods: Sequence[str], forms: Sequence[str], shapes: Sequence[Shape]
) -> Iterator[tuple[str, str, Shape]]:
    for form in forms:
        for name in methods:
            if not (form.startswith("int") and name == "shadowkv"):
                yield from ((form, name, shape) for shape in shapes)


def _of_shape(form: str, name: str, shape: Shape, flusher: CacheFlusher, rounds: int) -> Iterator[Point]:
    dtype = FORMS[form]
    for batch, tokens, budget in (*_CASES, _LONG[shape]) if shape in _LONG else _CASES:
        heads = Heads(*shape, shape[-1], dtype, batch)
        source = Synthetic(heads.kv_heads, heads.head_dim, dtype=dtype, device=flusher.device, batch=batch)
        layer = Recipe((method_of(name, form, budget),)).layers(1)[0]
        kv_dtype = form if form.startswith("int") else "auto"
        dense = LayerCache(DensePrefill(), make_storage("device", kv_dtype))
        filled = source.keys_values(tokens)
        for cache in (layer, dense):
            cache.append(*filled)
        layer.prepare()
        steps = [_step(cache, source, heads) for cache in (layer, dense)]
        clock_of = cpu_clock if flusher.device.type == "cpu" else clock
        if _selects(layer, steps[0]):
            times = interleave(steps, rounds=rounds, flusher=flusher, clock=clock_of)
            micro = [round(1000 * each.median, 1) for each in times]
            yield Point(form, name, *shape, batch, tokens, budget, *micro)


def _step(cache: LayerCache, source: Synthetic, heads: Heads) -> Candidate:
    query, (key, value) = source.query(heads.query_heads), source.keys_values(1)
    tokens, logits = cache.length, Logits(heads.head_dim**-0.5)

    def run() -> None:
        cache.append(key, value)
        cache.attend(query, logits)

    return Candidate(DENSE, "", run, 0, 0, after=lambda: cache.crop(tokens))


def _selects(layer: LayerCache, step: Candidate) -> bool:
    """Whether a step reads a selection; where the context is short for its budget, everything is read."""
    with layer.observed() as seen:
        step.run()
    step.after()
    return bool(seen)
