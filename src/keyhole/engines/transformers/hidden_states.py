"""The inputs of a model's attention layers, shown to the layers of a cache that ask for them."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedModel

from keyhole.core.needs import Needs
from keyhole.engines.transformers.projections import attention_module


def layers_that_ask(cache: Cache) -> list[int]:
    """The layers of a cache some part of which asks for hidden states."""
    return [index for index, layer in enumerate(cache.layers) if _asks(layer)]


def _asks(layer: Any) -> bool:
    inner = getattr(layer, "inner", None)
    # Steps of fixed size show nothing, and no part of a layer that takes them asks.
    return Needs.HIDDEN_STATES in getattr(inner, "needs", Needs.NOTHING)


class HiddenStates:
    """Forward pre-hooks on the attention of some layers, from the first cache that asks until `remove`.

    A hook shows what goes in to the cache of the same call, so several requests do not mix.
    """

    def __init__(self) -> None:
        self._handles: dict[int, RemovableHandle] = {}

    def record(self, model: PreTrainedModel, layers: list[int]) -> None:
        """Put in the hooks of these layers that are not there yet.

        Raises:
            UnsupportedModelError: the attention module of a layer cannot be found.
        """
        for layer in layers:
            if layer not in self._handles:
                module = attention_module(model, layer)
                hook = partial(_show, layer)
                self._handles[layer] = module.register_forward_pre_hook(hook, with_kwargs=True)

    def remove(self) -> None:
        """Take all hooks out."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()


def _show(layer: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = (*args, *kwargs.values())
    cache = next((each for each in given if isinstance(each, Cache)), None)
    if cache is None or layer >= len(cache.layers) or not _asks(cache.layers[layer]):
        return
    inner: Any = getattr(cache.layers[layer], "inner", None)
    inner.see_hidden_states(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
