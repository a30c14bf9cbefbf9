"""What a method derived from a whole document, beside its keys and values; and states that are one whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from keyhole.core.errors import SavedStateError
from keyhole.documents.store import Entry
from keyhole.engines.transformers import KeyholeCache, served_layers
from keyhole.engines.transformers.cache import request_of
from keyhole.engines.transformers.layer_state import check_finite, layer_state, restore_layer
from keyhole.storage import Storage

INDEX_VERSION = "1"

State = tuple[dict[str, Tensor], dict[str, Any]]


def index_state(cache: KeyholeCache) -> State:
    """Of each served layer the index and the newest queries, and what the layers share."""
    tensors: dict[str, Tensor] = {}
    layers = served_layers(cache)
    for number, layer in enumerate(layers):
        for name, tensor in layer.rest().items():
            tensors[f"{number}.{name}"] = tensor.detach().cpu().contiguous()
    check_finite("the index cannot be stored", tensors)
    tensors, infinite = _without_infinities(tensors)
    request = request_of(cache)
    facts = {
        "indexed": [layer.indexed for layer in layers],
        "infinite": infinite,
        "request": {} if request is None else request.state(),
    }
    return tensors, facts


def _without_infinities(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors with infinities, which an index may have, as bytes; and the types of those."""
    types = {
        name: str(tensor.dtype).removeprefix("torch.")
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and bool(tensor.isinf().any())
    }
    return {n: t.view(torch.uint8) if n in types else t for n, t in tensors.items()}, types


def resume(cache: KeyholeCache, storages: Sequence[Storage], index: Entry, device: torch.device) -> None:
    """Let a fresh cache go on where `index` was stored, with keys and values that are in `storages`."""
    facts = index.facts
    held: list[dict[str, Tensor]] = [{} for _ in storages]
    for name in index.names:
        number, _, rest = name.partition(".")
        tensor = index.tensor(name).clone()
        if name in facts["infinite"]:
            tensor = tensor.view(getattr(torch, facts["infinite"][name]))
        held[int(number)][rest] = tensor.to(device)
    for layer, storage, state, indexed in zip(
        served_layers(cache), storages, held, facts["indexed"], strict=True
    ):
        layer.resume(storage, state, indexed)
    _resume_request(cache, facts["request"])


def whole_state(cache: KeyholeCache) -> State:
    """All that a cache holds."""
    states = [layer_state(layer) for layer in cache.layers]
    tensors = {
        f"{number}.{name}": tensor.detach().cpu().contiguous()
        for number, (_, held) in enumerate(states)
        for name, tensor in held.items()
    }
    check_finite("the document cannot be stored", tensors)
    request = request_of(cache)
    facts = {
        "layers": [facts for facts, _ in states],
        "request": {} if request is None else request.state(),
    }
    return tensors, facts


def restore_whole(cache: KeyholeCache, state: Entry, device: torch.device) -> None:
    """Let a fresh cache hold a whole state.

    Raises:
        SavedStateError: it is of other layers.
    """
    facts, held = state.facts, {name: state.tensor(name) for name in state.names}
    if len(facts["layers"]) != len(cache.layers):
        raise SavedStateError(f"the document has {len(facts['layers'])} layers, not {len(cache.layers)}")
    for number, (layer, said) in enumerate(zip(cache.layers, facts["layers"], strict=True)):
        prefix = f"{number}."
        own = {
            n.removeprefix(prefix): t.to(device, copy=True) for n, t in held.items() if n.startswith(prefix)
        }
        restore_layer(layer, said, own)
    _resume_request(cache, facts["request"])


def _resume_request(cache: KeyholeCache, state: dict[str, Any]) -> None:
    request = request_of(cache)
    if request is not None and state:
        request.restore(state)
