"""The inputs of a model's attention layers, shown to the layers of a cache that ask for them."""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import finalize, ref

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedModel

from keyhole.core.needs import Needs
from keyhole.engines.transformers.model import adapter_of
from keyhole.engines.transformers.projections import attention_module


class HiddenStates:
    """Forward pre-hooks on the attention of some layers, for as long as this lives.

    A hook shows what goes in to the cache of the same call, so several requests do not mix.
    """

    def __init__(self, model: PreTrainedModel, layers: list[int]) -> None:
        handles = [
            attention_module(model, layer).register_forward_pre_hook(partial(_show, layer), with_kwargs=True)
            for layer in layers
        ]
        finalize(self, _remove, handles)

    def __deepcopy__(self, memo: dict[int, object]) -> HiddenStates:
        """The same one: it is the model's, not a request's."""
        return self


def hidden_states_of(model: PreTrainedModel, layers: list[int]) -> HiddenStates:
    """The hooks of a model, which all caches that ask share; they go with the last layer that holds them.

    Raises:
        UnsupportedModelError: the attention module of a layer cannot be found.
    """
    adapter = adapter_of(model)
    hooks = adapter.hidden_states()
    if hooks is None:
        hooks = HiddenStates(model, layers)
        adapter.hidden_states = ref(hooks)
    return hooks


def _show(layer: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = (*args, *kwargs.values())
    cache = next((each for each in given if isinstance(each, Cache)), None)
    if cache is None or layer >= len(cache.layers):
        return
    inner = getattr(cache.layers[layer], "inner", None)
    if inner is not None and Needs.HIDDEN_STATES in inner.needs:
        inner.see_hidden_states(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
