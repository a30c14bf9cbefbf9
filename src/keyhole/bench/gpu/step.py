"""A whole model's decode step on a GPU: captured, as transformers takes it, and densely captured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from keyhole.attention import Logits
from keyhole.bench.case import Case
from keyhole.bench.layers import fill, layer_sizes
from keyhole.bench.models import (
    SDPA,
    forward,
    keyhole_cache,
    plain_cache,
    use_keyhole,
    use_sdpa,
    weight_bytes,
)
from keyhole.bench.result import Result, Timed, noise
from keyhole.bench.shapes import Shape
from keyhole.cache.captured import CapturedLayer
from keyhole.engines.transformers.graphs import captured
from keyhole.methods.recipe import Recipe
from keyhole.tuning.machine import implementation, require_memory
from keyhole.tuning.timing import CacheFlusher, Candidate, interleave

DENSE = "sdpa folded, captured"
_SPARE = 1.1  # of the caches, for indexes and what a step needs beside


@torch.no_grad()
def step(case: Case, shape: Shape, method: str, *, rounds: int, flusher: CacheFlusher) -> list[Result]:
    """Time a step of a model of random weights, by one cache after the other: memory holds one of them.

    Raises:
        ValueError: the method has no steps of fixed size, or one cache does not fit into memory.
    """
    device = torch.device(case.device)
    weights = shape.parameters * case.torch_dtype.itemsize
    needed = weights + _SPARE * (shape.layers + 1) * case.cache_bytes
    require_memory(f"{shape.layers} layers with {case.tokens} tokens each", needed, device)
    torch.manual_seed(case.seed)
    with device:
        model = shape.model(case.torch_dtype, case.tokens)
    contest = _Contest(model, case, shape.layers, rounds, flusher)
    ours = contest.keyhole(case.recipe(method))
    baselines = [contest.transformers(), contest.dense()]
    notes = [
        f"random weights, {shape.layers} layers, {case.tokens} synthetic tokens in every layer's cache, "
        "one cache after the other"
    ]
    return [
        Result(
            "step", layer_sizes(case), [ours], baselines, flusher.bandwidth, notes + noise([ours, *baselines])
        )
    ]


class _Contest:
    """Makes each candidate, times it, and gives its memory back."""

    def __init__(
        self, model: PreTrainedModel, case: Case, layers: int, rounds: int, flusher: CacheFlusher
    ) -> None:
        self.model, self.case, self.layers = model, case, layers
        self.rounds, self.flusher = rounds, flusher
        self.device = torch.device(case.device)
        self.token = torch.zeros(case.batch, 1, dtype=torch.long, device=self.device)
        self.weights = weight_bytes(model)

    def keyhole(self, recipe: Recipe) -> Timed:
        """The method's step of fixed size."""
        layers = recipe.layers(self.layers)
        for index, layer in enumerate(layers):
            source = self.case.source(index)
            fill(layer, *source.keys_values(self.case.tokens), self.case, source)
        use_keyhole(self.model)
        cache = keyhole_cache(self.model, layers)
        with captured(self.model, cache, new_tokens=2) as steps:
            steps(self.token)
            steps.rewind()
            run = Candidate(str(recipe), implementation(self.device), lambda: steps(self.token), 0, 0)
            timed = self._time(run, after=steps.rewind)
            steps(self.token)
        use_sdpa(self.model)
        usage = [layer.usage for layer in layers]
        moved = self.weights + self.case.batch * sum(each.bytes / max(each.steps, 1) for each in usage)
        read = sum(each.read / max(each.steps, 1) for each in usage) / len(usage)
        return Timed(replace(timed.candidate, bytes=moved, read_tokens=round(read)), timed.times)

    def dense(self) -> Timed:
        """Keyhole's layers, each read whole by one call, captured: the best that dense attention can do."""
        layers = Recipe.parse("dense").layers(self.layers)
        for index, layer in enumerate(layers):
            layer.append(*self.case.source(index).keys_values(self.case.tokens))
        use_keyhole(self.model)
        cache = keyhole_cache(self.model, layers)
        with captured(self.model, cache, new_tokens=1) as steps, ExitStack() as undone:
            for layer in steps.layers:
                layer.attend = _Folded(layer, self.case.tokens + 1)  # type: ignore[method-assign]
                undone.callback(delattr, layer, "attend")
            steps(self.token)
            steps.rewind()
            moved = self.weights + self.layers * self.case.cache_bytes
            run = Candidate(DENSE, "torch", lambda: steps(self.token), moved, self.case.tokens)
            timed = self._time(run, after=steps.rewind)
        use_sdpa(self.model)
        return timed

    def transformers(self) -> Timed:
        """transformers' sdpa attention and its own cache, kernel by kernel."""
        cache = plain_cache(self.model)
        for index in range(self.layers):
            cache.update(*self.case.source(index).keys_values(self.case.tokens), index)
        run = forward(self.model, self.token, lambda: cache)
        moved = self.weights + self.layers * self.case.cache_bytes
        return self._time(
            Candidate(SDPA, "torch", run, moved, self.case.tokens),
            after=lambda: cache.crop(self.case.tokens - cache.get_seq_length()),
        )

    def _time(self, candidate: Candidate, after: Callable[[], object]) -> Timed:
        times = interleave([replace(candidate, after=after)], rounds=self.rounds, flusher=self.flusher)[0]
        return Timed(candidate.described(), times)


class _Folded:
    """Attention of a captured layer over all of so many tokens by one call."""

    def __init__(self, layer: CapturedLayer, tokens: int) -> None:
        held = layer.storage.keys(), layer.storage.values()
        self.keys, self.values = (part[:, :, :tokens] for part in held)

    def __call__(self, query: Tensor, logits: Logits, *, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        folded = query.reshape(len(query), self.keys.shape[1], -1, query.shape[-1])
        out = F.scaled_dot_product_attention(folded, self.keys, self.values, scale=logits.scale)
        return out.reshape(len(query), -1, 1, out.shape[-1])
