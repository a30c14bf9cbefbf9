"""Indexing the keys of one layer on a GPU, against computing the prompt in that layer."""

from __future__ import annotations

import torch

from keyhole.bench.case import Case
from keyhole.bench.layers import filled_layer, layer_sizes
from keyhole.bench.result import Result, Timed, noise
from keyhole.bench.shapes import Shape
from keyhole.cache.layer import LayerCache
from keyhole.tuning.machine import implementation
from keyhole.tuning.timing import CacheFlusher, Candidate, Times, clock, interleave

_RUNS = 2  # of the prompt, the first of which is not counted


@torch.no_grad()
def build(case: Case, shape: Shape, method: str, *, rounds: int, flusher: CacheFlusher) -> list[Result]:
    """Time building one layer's index, and a layer of a model of this shape that computes as many tokens.

    Raises:
        ValueError: the case does not fit into memory.
    """
    device = torch.device(case.device)
    recipe = case.recipe(method)
    filled = filled_layer(case, recipe, case.source())
    held: list[LayerCache] = []

    def fresh() -> None:
        held[:] = recipe.layers(1)
        held[0].storage = filled.storage

    moved = case.cache_bytes / 2
    impl = implementation(device)
    ours = Candidate(str(recipe), impl, lambda: held[0].prepare(), moved, case.tokens, fresh)
    times = interleave([ours], rounds=rounds, flusher=flusher)
    seconds = _layer_seconds(case, shape)
    prompt = Candidate("a layer's prompt", "torch", lambda: None, case.cache_bytes, case.tokens)
    timed = [Timed(ours, times[0]), Timed(prompt, Times(seconds * 1e3, seconds * 1e3))]
    share = times[0].median / seconds / 1e3
    notes = [f"the index takes {share:.1%} of the layer's prompt, attention and feed-forward", *noise(timed)]
    return [Result("build", layer_sizes(case), timed[:1], timed[1:], flusher.bandwidth, notes)]


def _layer_seconds(case: Case, shape: Shape) -> float:
    """One layer with transformers' sdpa attention, its prompt of `tokens`."""
    device = torch.device(case.device)
    with device:
        model = shape.model(case.torch_dtype, case.tokens)
        layer, rotary = model.model.layers[0], model.model.rotary_emb
        hidden = torch.randn(case.batch, case.tokens, shape.hidden).to(case.torch_dtype)
        positions = torch.arange(case.tokens).unsqueeze(0)
        embedded = rotary(hidden, positions)

    def run() -> object:
        return layer(hidden, position_embeddings=embedded, attention_mask=None, position_ids=positions)

    return [clock(run, device) for _ in range(_RUNS)][-1]
