"""A cache that several questions continue, each as if it were the first."""

from __future__ import annotations

from copy import deepcopy

from keyhole.cache.layer import LayerCache
from keyhole.engines.transformers import KeyholeCache, served_layers
from keyhole.storage import DeviceStorage, RenumberedStorage


def fork(cache: KeyholeCache) -> KeyholeCache:
    """A copy to continue, to be given to `rewind` before the original is used again.

    Keys and values that only grow are shared with the original. What a longer text changes is copied:
    indexes, keys and values that are dropped or re-encoded, and the layers of other kinds.
    """
    shared: dict[int, object] = {id(layer.storage): layer.storage for layer in _growing(cache)}
    for layer in cache.layers:
        steps = getattr(layer, "steps", None)
        if steps is not None:
            # Thresholds of a model's weights, which the model's modules refer to.
            shared[id(steps.feedforward)] = steps.feedforward
    return deepcopy(cache, shared)


def rewind(copy: KeyholeCache, length: int) -> None:
    """Take from what a copy shares with its original the tokens behind the first `length`."""
    for layer in _growing(copy):
        layer.storage.crop(length)


def _growing(cache: KeyholeCache) -> list[LayerCache]:
    """Layers whose storage a crop leaves exactly as it was at that length."""
    return [
        layer
        for layer in served_layers(cache)
        if type(layer) is LayerCache and type(layer.storage) in (DeviceStorage, RenumberedStorage)
    ]
