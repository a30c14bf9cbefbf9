"""Whether a decoder's modules still are what they were when their weights were read.

Looked at before each step, so that it has to take microseconds for hundreds of modules.
"""

from __future__ import annotations

from itertools import repeat
from operator import contains, getitem, is_
from typing import Any

import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_HARMLESS = "transformers.utils.output_capturing"  # hooks that do nothing unless outputs are asked for


class Watch:
    """The layers of a decoder and its last norm: their modules, tensors, numbers, hooks and functions."""

    def __init__(self, decoder: Any) -> None:
        modules = [module for part in (decoder.layers, decoder.norm) for module in part.modules()]
        children = [(module._modules, name) for module in modules for name in module._modules]
        children += [(decoder._modules, name) for name in ("layers", "norm")]
        # Weights are parameters, and buffers where they are packed.
        held = [store for module in modules for store in (module._parameters, module._buffers)]
        tensors = [(store, name) for store in held for name in store]
        numbers = [site for module in modules for site in _numbers(module)]
        numbers.append((vars(decoder.config), "num_hidden_layers"))
        self._numbers = [held for held, _ in numbers], [name for _, name in numbers]
        self._values = [held[name] for held, name in numbers]
        self._children = [held for held, _ in children], [name for _, name in children]
        self._tensors = [held for held, _ in tensors], [name for _, name in tensors]
        self._parts = [held[name] for held, name in children]
        self._weights = [held[name] for held, name in tensors]
        self._present = [weight for weight in self._weights if weight is not None]
        self._places = list(map(Tensor.data_ptr, self._present))
        self._vars = [vars(module) for module in modules]
        self._hooks = [getattr(module, kind) for module in modules for kind in _HOOKS]
        self._counts = [0] * len(self._hooks)

    @property
    def stamp(self) -> int:
        """Of the memory of all tensors."""
        return hash(tuple(self._places))

    @property
    def learns(self) -> bool:
        """Whether any tensor is to get a gradient."""
        return any([weight.requires_grad for weight in self._present])

    def unchanged(self) -> bool:
        """Whether the modules are the same, and their tensors where they were."""
        return (
            _are(self._children, self._parts)
            and _are(self._tensors, self._weights)
            and list(map(getitem, *self._numbers)) == self._values
            and list(map(Tensor.data_ptr, self._present)) == self._places
        )

    def obstacle(self) -> str | None:
        """What keeps calls of the modules from being passed over."""
        if any(map(contains, self._vars, repeat("forward"))):
            return "a module has a forward of its own, as those that skip weights or are offloaded have"
        counts = list(map(len, self._hooks))
        if counts != self._counts:
            if not all(_harmless(hooks) for hooks in self._hooks):
                return "a module has hooks, which would not be called"
            self._counts = counts
        if torch.nn.modules.module._has_any_global_hook():
            return "there are hooks of all modules, which would not be called"
        return None


def _numbers(module: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Where a module has numbers to compute with, such as an epsilon, and whether those are for training."""
    held = vars(module)
    names = [name for name, value in held.items() if type(value) is float]
    return [(held, name) for name in (*names, "training")] if names else []


def _are(sites: tuple[list[dict[str, Any]], list[str]], expected: list[Any]) -> bool:
    """Whether what dictionaries hold by some names is what it was."""
    try:
        return all(map(is_, map(getitem, *sites), expected))
    except KeyError:
        return False


def _harmless(hooks: dict[int, Any]) -> bool:
    return all(getattr(hook, "__module__", "") == _HARMLESS for hook in hooks.values())
