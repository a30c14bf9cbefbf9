"""`bench step`: a whole model's decode step with a long context, against transformers with its own cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from keyhole.bench.case import Case
from keyhole.bench.layers import layer_sizes
from keyhole.bench.models import SDPA, shape_case
from keyhole.bench.result import Result, Timed, noise
from keyhole.bench.shapes import Shape
from keyhole.bench.step_candidates import DENSE, StepCandidates
from keyhole.engines.transformers.packed import pack_model, summary
from keyhole.methods.recipe import Recipe, answers
from keyhole.tuning.machine import free_bytes, require_memory
from keyhole.tuning.timing import CacheFlusher, Candidate, interleave

_SPARE = 0.1  # share of the caches that indexes and doubled buffers may take beside
_COPIES = 3  # caches of one layer that exist beside while it is filled, or joined by torch.cat


@torch.no_grad()
def step(
    shape: Shape,
    methods: Sequence[str | Recipe],
    *,
    tokens: int,
    dtype: str,
    read_tokens: int,
    rounds: int,
    flusher: CacheFlusher,
    seed: int = 0,
    weights: str | None = None,
) -> list[Result]:
    """Time one decode step with synthetic tokens in the cache, by each method, by transformers and dense.

    All caches are held at once and take turns where memory allows; otherwise one after the other.

    Args:
        weights: "int8" or "int4": packed for transformers and Keyhole alike.

    Raises:
        ValueError: a method cannot be read, or memory does not even allow one cache.
        CheckFailedError: wrong logits when reading everything, or a layer is not exact over what it reads.
    """
    case = shape_case(shape, tokens, dtype, read_tokens, seed)
    recipes = [case.recipe(method) for method in methods]
    whole = next((recipe for recipe in recipes if _stores_plainly(recipe)), None)
    together = _fits_together(shape, case, len(recipes) + 1)
    torch.manual_seed(seed)
    model = shape.model(case.torch_dtype, tokens)
    if weights is not None:
        pack_model(model, weights)
    entrants = StepCandidates(model, case, shape.layers)
    makers: list[Callable[[], list[Candidate]]] = [entrants.transformers]
    for recipe in recipes:
        with_dense = recipe is whole
        makers.append(lambda recipe=recipe, dense=with_dense: entrants.keyhole(recipe, with_dense=dense))
    if whole is None:
        makers.append(lambda: entrants.keyhole(Recipe.parse("dense"), with_dense=True)[1:])
    timed: list[Timed] = []
    for group in [makers] if together else [[maker] for maker in makers]:
        timed += _timed(group, rounds, flusher)
    baselines = [one for one in timed if one.candidate.name in (SDPA, DENSE)]
    ours = [one for one in timed if one not in baselines]
    notes = [
        f"random weights, {shape.layers} layers, {tokens} synthetic tokens in every layer's cache",
        "all caches held at once" if together else "memory allows one cache at a time: one after the other",
    ]
    notes += [] if weights is None else [f"{weights} weights: {summary(model)}"]
    notes += noise(timed)
    return [Result("step", layer_sizes(case), ours, baselines, flusher.bandwidth, notes)]


def _stores_plainly(recipe: Recipe) -> bool:
    """Whether all tokens are stored as they come, so that they can be read densely too."""
    return not recipe.drops and not any(answers(stage, "storage") for stage in recipe.stages)


def _timed(
    makers: Sequence[Callable[[], list[Candidate]]], rounds: int, flusher: CacheFlusher
) -> list[Timed]:
    """Make candidates and time them in turn; of them nothing but names and times is kept."""
    candidates = [candidate for make in makers for candidate in make()]
    times = interleave(candidates, rounds=rounds, flusher=flusher)
    return [Timed(each.described(), its) for each, its in zip(candidates, times, strict=True)]


def _fits_together(shape: Shape, case: Case, caches: int) -> bool:
    """Whether all caches fit beside the model; raises ValueError if not even one does."""
    weights = shape.parameters * case.torch_dtype.itemsize
    one = shape.layers * case.cache_bytes * (1 + _SPARE)
    beside = weights + _COPIES * case.cache_bytes
    require_memory(f"{shape.layers} layers with {case.tokens} tokens each", beside + one)
    return beside + caches * one <= free_bytes()
