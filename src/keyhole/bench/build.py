"""`bench build`: indexing the keys of one layer, against that layer's dense attention over the prompt."""

from __future__ import annotations

import torch

from keyhole.attention import dense_attention
from keyhole.bench.case import Case
from keyhole.bench.checks import check_selective_step
from keyhole.bench.layers import filled_layer, layer_sizes, new_token
from keyhole.bench.result import Result, Timed, noise
from keyhole.cache.layer import LayerCache
from keyhole.methods.recipe import Recipe
from keyhole.tuning.machine import implementation
from keyhole.tuning.synthetic import Synthetic
from keyhole.tuning.timing import CacheFlusher, Candidate, Times, clock, interleave

_SHORTEST = 1024
_LONGEST_SECONDS = 60.0  # a prompt estimated to take longer is not computed whole
_RUNS = 3
_ENOUGH_SECONDS = 2.0  # the time of what is measured in its place


@torch.no_grad()
def build(case: Case, method: str | Recipe, *, rounds: int, flusher: CacheFlusher) -> list[Result]:
    """Time building one layer's index; the ratio is how many times longer its prompt attention takes.

    Raises:
        ValueError: the method has no index at this length, or the case does not fit into memory.
        CheckFailedError: a step with the built index is not exact over what it reads.
    """
    recipe = case.recipe(method)
    source = case.source()
    filled = filled_layer(case, recipe, source)
    held: list[LayerCache] = []

    def fresh() -> None:
        held[:] = recipe.layers(1)
        held[0].storage = filled.storage

    fresh()
    held[0].prepare()
    if not held[0].indexed:
        raise ValueError(
            f"{recipe} builds no index over {case.tokens} tokens; give more tokens or another method"
        )
    check_selective_step(held[0], new_token(case, source).query, case.logits)
    index_bytes = held[0].footprint.device - held[0].storage.footprint.device
    candidate = Candidate(
        str(recipe),
        implementation(),
        lambda: held[0].prepare(),
        case.cache_bytes / 2 + index_bytes,
        case.tokens,
        before=fresh,
    )
    times = interleave([candidate], rounds=rounds, flusher=flusher)[0]
    prompt, note = _prompt(case, source)
    notes = [f"the index takes {times.median / prompt.times.median:.1%} of the prompt's attention; {note}"]
    notes += noise([Timed(candidate, times)])
    return [Result("build", layer_sizes(case), [Timed(candidate, times)], [prompt], flusher.bandwidth, notes)]


def _prompt(case: Case, source: Synthetic) -> tuple[Timed, str]:
    """Causal attention over all tokens; where that takes too long, over fewer, scaled by their square."""
    tokens = min(_SHORTEST, case.tokens)
    while True:
        elapsed = _prompt_seconds(case, source, tokens)
        expected = elapsed * (case.tokens / tokens) ** 2
        if tokens == case.tokens or (expected > _LONGEST_SECONDS and elapsed > _ENOUGH_SECONDS):
            break
        tokens = case.tokens if expected <= _LONGEST_SECONDS else min(2 * tokens, case.tokens)
    extrapolated = tokens < case.tokens
    name = f"dense prompt, scaled from {tokens}" if extrapolated else "dense prompt"
    note = f"that was measured at {tokens} tokens" + (" and grows with their square" if extrapolated else "")
    candidate = Candidate(name, "torch", lambda: None, case.cache_bytes, case.tokens)
    return Timed(candidate, Times(expected * 1e3, expected * 1e3)), note


def _prompt_seconds(case: Case, source: Synthetic, tokens: int) -> float:
    """The best of a few runs, so that noise does not flatter the index."""
    keys, values = source.keys_values(tokens)
    query = torch.randn(1, case.query_heads, tokens, case.head_dim, dtype=case.torch_dtype)
    runs: list[float] = []
    while len(runs) < _RUNS and sum(runs) < _LONGEST_SECONDS:
        runs.append(clock(lambda: dense_attention(query, keys, values, scale=case.logits.scale)))
    return min(runs)
