"""`bench decode`: one layer's decode step, selection included, against torch's dense calls."""

from __future__ import annotations

import torch

from keyhole.bench.case import Case
from keyhole.bench.checks import check_selective_step
from keyhole.bench.dense import dense_baselines
from keyhole.bench.layers import filled_layer, layer_sizes, new_token, step_candidate
from keyhole.bench.result import Result, compare
from keyhole.cache.layer import LayerCache
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.recipe import Recipe
from keyhole.tuning.synthetic import Synthetic
from keyhole.tuning.timing import CacheFlusher, clock


@torch.no_grad()
def decode(case: Case, method: str | Recipe, *, rounds: int, flusher: CacheFlusher) -> list[Result]:
    """Time appending one token and attending to it. The baselines attend only, to the same keys and values.

    A method that drops tokens has dropped those of the prompt before, and the baselines read what it keeps.

    Raises:
        ValueError: the method cannot be read, or the case does not fit into memory.
        CheckFailedError: the step is not exact over what it reads.
    """
    recipe = case.recipe(method)
    source = case.source()
    layer = filled_layer(case, recipe, source)
    built = clock(layer.prepare)
    token = new_token(case, source)
    check_selective_step(layer, token.query, case.logits)
    step = step_candidate(case, recipe, layer, token)
    keys, values = layer.storage.keys().contiguous(), layer.storage.values().contiguous()
    baselines = dense_baselines(token.query, keys, values, scale=case.logits.scale)
    notes = [f"building the index once took {built * 1e3:.0f} ms, not counted"] if layer.indexed else []
    result = compare(
        "decode", layer_sizes(case), [step], baselines, rounds=rounds, flusher=flusher, notes=notes
    )
    result.notes.extend(_upkeep(recipe, layer, source))
    return [result]


def _upkeep(recipe: Recipe, layer: LayerCache, source: Synthetic) -> list[str]:
    """What indexing the tokens that have left the window costs; most steps are without it."""
    window = next((stage.window for stage in recipe.stages if isinstance(stage, RetrievalMethod)), 0)
    if not layer.indexed or not window:
        return []
    for _ in range(2):  # the first may have to grow buffers
        layer.append(*source.keys_values(window + 1))
        indexed = layer.indexed
        elapsed = clock(layer.prepare)
    added = layer.indexed - indexed
    return [f"not in that: every {added} steps these tokens are indexed together, {elapsed * 1e3:.2f} ms"]
