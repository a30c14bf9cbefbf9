"""One model's decode step by different caches, each filled with the same synthetic tokens and checked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from keyhole.bench.case import Case
from keyhole.bench.checks import check_close, check_observation
from keyhole.bench.layers import fill, keeps_its_size, layer_implementation
from keyhole.bench.models import (
    SDPA,
    forward,
    keyhole_cache,
    plain_cache,
    random_setting,
    sources_of_layers,
    use_keyhole,
    use_sdpa,
    weight_bytes,
)
from keyhole.cache.layer import LayerCache
from keyhole.feedforward import Steps
from keyhole.methods.recipe import Recipe
from keyhole.tuning.timing import Candidate

DENSE = "keyhole dense"


class StepCandidates:
    """Makes candidates for one model; each forgets its new token after a run, so that all runs are alike."""

    def __init__(self, model: PreTrainedModel, case: Case, layers: int) -> None:
        self.model, self.case, self.layers = model, case, layers
        self._weights = weight_bytes(model)
        self._token = torch.zeros(1, 1, dtype=torch.long)
        self._expected: Tensor | None = None

    def transformers(self) -> list[Candidate]:
        """transformers' sdpa attention and its own cache, which joins old and new tokens in every step."""
        cache: Any = plain_cache(self.model)
        for index, source in enumerate(sources_of_layers(self.case, self.layers)):
            cache.update(*source.keys_values(self.case.tokens), index)
        originals = [(layer.keys, layer.values) for layer in cache.layers]

        def start() -> None:
            use_sdpa(self.model)

        def forget() -> None:
            for layer, (keys, values) in zip(cache.layers, originals, strict=True):
                layer.keys, layer.values = keys, values

        run = forward(self.model, self._token, lambda: cache)
        start()
        self._expected = run()
        forget()
        moved = self._weights + self.layers * self.case.cache_bytes
        return [Candidate(SDPA, "torch", run, moved, self.case.tokens, before=start, after=forget)]

    def keyhole(self, recipe: Recipe, *, with_dense: bool) -> list[Candidate]:
        """A method, and if asked Keyhole reading everything from the same storage.

        Raises:
            CheckFailedError: a layer is not exact over what it reads, or the logits of reading everything
                are not those of `transformers`, if that was made before.
        """
        layers = recipe.layers(self.layers)
        for layer, source in zip(layers, sources_of_layers(self.case, self.layers), strict=True):
            fill(layer, *source.keys_values(self.case.tokens), self.case, source)
            layer.prepare()
        feedforward = recipe.feedforward(random_setting(self.model))
        selective = self._entrant(str(recipe), layers, Steps(feedforward) if feedforward else None)
        if not with_dense:
            return [selective]
        dense = [LayerCache(layer.prefill, layer.storage) for layer in layers]
        everything = self._entrant(DENSE, dense)
        self._check_logits(everything)
        return [selective, everything]

    def _entrant(self, name: str, layers: list[LayerCache], steps: Steps | None = None) -> Candidate:
        cache = keyhole_cache(self.model, layers, steps)
        run = forward(self.model, self._token, lambda: cache)

        def start() -> None:
            use_keyhole(self.model, steps)

        def forget() -> None:
            for layer in layers:
                if not keeps_its_size(layer):
                    layer.crop(self.case.tokens)
            use_sdpa(self.model)

        start()
        read = _checked_step(layers, run, self.case)
        forget()
        activated = steps.activated.share if steps else 1.0
        moved = self._weights * activated + sum(layer.usage.bytes for layer in layers)
        impl = layer_implementation(layers[0])
        return Candidate(name, impl, run, moved, read, before=start, after=forget)

    def _check_logits(self, everything: Candidate) -> None:
        if self._expected is not None:
            found = once(everything)
            what = "the model's logits when Keyhole reads everything"
            check_close(what, found, self._expected, self.case.torch_dtype)


def once(candidate: Candidate) -> Any:
    """What one run of a candidate returns."""
    candidate.before()
    found = candidate.run()
    candidate.after()
    return found


def _checked_step(layers: list[LayerCache], run: Callable[[], object], case: Case) -> int:
    """Let every layer do one step, compared with exact attention over what it read.

    Returns the tokens read beside those always read, a mean over the layers.
    """
    with ExitStack() as observing:
        seen = [observing.enter_context(layer.observed()) for layer in layers]
        run()
    counts = []
    for layer, steps in zip(layers, seen, strict=True):
        if not steps:
            counts.append(layer.usage.read)
            continue
        observed = steps[0]
        query, out = observed.query.unsqueeze(2), observed.read.part.out.unsqueeze(2)
        check_observation(observed, layer, query, out, case.logits)
        counts.append(float(observed.read.selection.counts.float().mean()))
    return round(sum(counts) / len(counts))
