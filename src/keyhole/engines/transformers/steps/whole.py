"""Decode steps of a cache by one native call, where all of its layers read in ordinary ways.

Legend: B rows, E hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from keyhole.cache.ordinary import OrdinaryLayer, ordinary
from keyhole.engines.transformers.calls import ServedCache
from keyhole.engines.transformers.phase import generating
from keyhole.engines.transformers.steps.families import Understood
from keyhole.kernels.decoder.native import NativeStep
from keyhole.kernels.decoder.whole import WholeStep


class CacheSteps:
    """Such steps of one cache, as its layers are now."""

    def __init__(self, step: WholeStep, layers: Sequence[OrdinaryLayer]) -> None:
        self._step, self._layers = step, layers

    def run(self, cache: ServedCache, embeddings: Tensor, cos: Tensor, sin: Tensor) -> Tensor | None:
        """Hidden states `[B, E]` of a generated token.

        None where the layers have to answer; nothing has changed then.
        """
        first = self._layers[0]
        length = first.storage.length + 1
        pairs = zip(self._layers, cache.layers, strict=True)
        if not all([own.layer is held.inner and own.fits(length, len(embeddings)) for own, held in pairs]):
            return None
        for place, layer in enumerate(self._layers):
            if layer.budget:
                self._step.budget(place, layer.budget)
        hidden = self._step.run(embeddings, cos, sin, length)
        if hidden is not None:
            cache.begin_step()
            first.layer.arrive(1, generating)
            counts, masses = self._step.chosen()
            for layer, own_counts, own_masses in zip(self._layers, counts, masses, strict=True):
                layer.took(length, own_counts, own_masses)
        return hidden


def takes_whole_steps(cache: ServedCache) -> bool:
    """Whether the next token that comes to a cache is generated, and its layers alone say what a step is."""
    if not cache.is_plain:
        return False
    first = cache.layers[0].inner
    request = first.request
    return (
        first.length > 0
        and request.listener is None
        and request.position is None
        and request.decide(first.length, 1, generating())
    )


def cache_steps(cache: ServedCache, understood: Understood, step: NativeStep) -> CacheSteps | None:
    """Steps of a cache whose layers are all ordinary; None where one is not."""
    sizes, request = understood.decoder.sizes, cache.layers[0].inner.request
    found = [ordinary(cache.layers[at].inner, logits, sizes) for at, logits in understood.attention]
    layers = [each for each in found if each is not None]
    alike = all(layer.layer.request is request for layer, _ in layers)
    if len(layers) != len(cache.layers) or len(layers) != len(found) or not alike:
        return None
    return CacheSteps(WholeStep(step, [reads for _, reads in layers]), [layer for layer, _ in layers])
