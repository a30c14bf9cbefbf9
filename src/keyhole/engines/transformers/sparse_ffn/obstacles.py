"""What keeps a module from being replaced by arithmetic with its weights.

Adapters, quantised classes, parametrizations and functions of a user's own compute something else; hooks on
the inner modules of a feed-forward would not be called.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from keyhole.core.errors import UnsupportedModelError

ACTIVATIONS = ("act_fn", "activation_fn")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_FUSED, _SEPARATE = ("gate_up_proj", "down_proj"), ("gate_proj", "up_proj", "down_proj")
_PLAIN = (nn.Parameter, Tensor)  # what quantisation and sharding put in their place are subclasses


class Substitute:
    """A `forward` of Keyhole's, which is no obstacle to itself."""


def looks_gated(module: Any) -> bool:
    """Whether a module has an activation function and the projections of a gated feed-forward."""
    if not isinstance(module, nn.Module) or not any(hasattr(module, name) for name in ACTIVATIONS):
        return False
    if is_experts(module):
        weights = [getattr(module, name, None) for name in _FUSED]
        return all(isinstance(weight, Tensor) and weight.dim() == 3 for weight in weights)
    return all(isinstance(part, nn.Module) for part in _projections(module).values())


def is_experts(module: nn.Module) -> bool:
    """Whether a gated module is experts, their weights in one tensor."""
    return isinstance(getattr(module, "down_proj", None), Tensor)


def gated_obstacle(module: nn.Module) -> str | None:
    """Why the weights of a gated module cannot be taken for what it computes, to be read behind its name."""
    if is_experts(module):
        parts = (_weight_obstacle(module, name) for name in _FUSED)
    else:
        parts = (_behind(f".{name}", linear_obstacle(part)) for name, part in _projections(module).items())
    return next(filter(None, (own_forward(module), *parts)), None)


def linear_obstacle(module: nn.Module) -> str | None:
    """As `gated_obstacle`, for a projection."""
    if type(module) is not nn.Linear:
        return f" is a {type(module).__module__}.{type(module).__qualname__}"
    return own_forward(module) or _weight_obstacle(module, "weight")


def _behind(name: str, obstacle: str | None) -> str | None:
    return None if obstacle is None else name + obstacle


def hooked_inside(module: nn.Module) -> bool:
    """Whether hooks wait for calls of a module's parts."""
    if torch.nn.modules.module._has_any_global_hook():
        return True
    return any(getattr(child, hooks) for child in module.children() for hooks in _HOOKS)


def check_in_memory(name: str, module: nn.Module) -> None:
    """Raise UnsupportedModelError if a module's weights are on the meta device."""
    missing = next((part for part, weight in module.named_parameters() if weight.is_meta), None)
    if missing is not None:
        raise UnsupportedModelError(
            f"{name}.{missing} is on the meta device and cannot be skipped; load the model without "
            "offloading, or leave `chess` out"
        )


def _projections(module: nn.Module) -> dict[str, Any]:
    names = _FUSED if hasattr(module, "gate_up_proj") else _SEPARATE
    return {name: getattr(module, name, None) for name in names}


def own_forward(module: nn.Module) -> str | None:
    """Why a module's forward is not that of its class, as `linear_obstacle`."""
    own = vars(module).get("forward")
    if own is None or isinstance(own, Substitute):
        return None
    if isinstance(own, MethodType) and own.__func__ is type(module).forward:
        return None
    if hasattr(module, "_hf_hook"):
        missing = next((f".{name}" for name, weight in module.named_parameters() if weight.is_meta), "")
        return f"{missing} is brought into memory by hooks of accelerate: load the model without offloading"
    return " has a forward of its own"


def _weight_obstacle(module: nn.Module, name: str) -> str | None:
    weight = module._parameters.get(name)
    if weight is None:
        return f".{name} is computed from other parameters"
    return None if type(weight) in _PLAIN else f".{name} is a {type(weight).__name__}"
