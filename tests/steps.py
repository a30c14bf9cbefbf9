"""Steps as a selector sees them, made of plain tensors."""

import torch

from keyhole.attention import Logits
from keyhole.core.layout import Regions
from keyhole.selection import Step
from keyhole.storage import DeviceStorage


def competing(first, last, length):
    """Regions in which slots [first, last) compete; `first` is one slot for each batch row."""
    first = torch.as_tensor(first, dtype=torch.int32)
    none = torch.zeros(len(first), 0, dtype=torch.int32)
    padding = (0,) * len(first)
    context = (length,) * len(first)
    stop = torch.full_like(first, last)
    return Regions(length, padding, context, none, none.sum(1).int(), first, last, stop)


def indexed_one_by_one(layers):
    """Layer caches that hold a prompt: an index does not depend on the step at which tokens enter it now."""
    for layer in layers:
        if layer.selector is not None:
            layer.selector.append = _leaving(layer.selector.append, layer.reading.window)
    return layers


def _leaving(append, window):
    """An `append` of what has left the window only, not of what is about to."""
    return lambda keys: append(keys[:, :, : keys.shape[2] - window])


def stored(keys):
    storage = DeviceStorage()
    storage.append(keys, keys[..., :1])
    return storage


def make_step(query, keys, first, last, anchor, budget, *, scale=None, softcap=None):
    logits = Logits(keys.shape[-1] ** -0.5 if scale is None else scale, softcap)
    return Step(query, stored(keys), competing(first, last, keys.shape[2]), anchor, logits, budget)
