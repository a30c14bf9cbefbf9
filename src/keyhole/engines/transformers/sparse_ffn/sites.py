"""The modules of a model that can skip weights: gated feed-forwards, experts, projections of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from keyhole.core.errors import UnsupportedModelError
from keyhole.feedforward import Gated, Projection

_ACTIVATIONS = ("act_fn", "activation_fn")
_PROJECTIONS = ("q_proj", "o_proj")


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The text decoder, by whose names its modules go."""
    return model.get_decoder()


def gated_sites(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Gated feed-forwards, and all experts of a layer as one, by name.

    Raises:
        UnsupportedModelError: there are none.
    """
    found = {name: module for name, module in decoder_of(model).named_modules() if is_gated(module)}
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no feed-forward whose gate, up and down projections are known here, "
            "so none can be skipped; leave `chess` out"
        )
    return found


def input_sites(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The query and output projections of attention by name; none where queries and keys share one."""
    found: dict[str, nn.Linear] = {}
    for name, module in decoder_of(model).named_modules():
        if all(_is_linear(module, each) for each in _PROJECTIONS):
            found |= {f"{name}.{each}": getattr(module, each) for each in _PROJECTIONS}
    return found


def is_experts(module: nn.Module) -> bool:
    """Whether a gated module is experts, their weights in one tensor."""
    return isinstance(getattr(module, "down_proj", None), Tensor)


def gated(module: Any) -> Gated:
    """The weights of a feed-forward as they are now."""
    if hasattr(module, "gate_up_proj"):
        gate, up = _halves(module.gate_up_proj.weight, module.gate_up_proj.bias)
    else:
        gate, up = projection(module.gate_proj), projection(module.up_proj)
    return Gated(gate, up, projection(module.down_proj), _activation(module))


def units(name: str, site: nn.Module) -> dict[str, Gated]:
    """What of a gated module gets thresholds of its own, by name: itself, or each of its experts."""
    if not is_experts(site):
        return {name: gated(site)}
    whole: Any = site
    return {unit_name(name, index): expert(site, index) for index in range(len(whole.down_proj))}


def unit_name(name: str, index: int) -> str:
    """What an expert of a module goes by."""
    return f"{name}.{index}"


def expert(module: Any, index: int) -> Gated:
    """The weights of one expert as they are now."""
    gate, up = _halves(module.gate_up_proj[index], None)
    return Gated(gate, up, Projection(module.down_proj[index]), _activation(module))


def projection(linear: Any) -> Projection:
    """The weights of a linear module as they are now."""
    return Projection(linear.weight, linear.bias)


def routed(indexes: Tensor, scores: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """For `[T, K]` choices of experts: a token, an expert of it, and how much that counts."""
    for token, experts in enumerate(indexes.tolist()):
        for place, index in enumerate(experts):
            yield token, index, scores[token, place]


def is_gated(module: Any) -> bool:
    if not isinstance(module, nn.Module) or not any(hasattr(module, name) for name in _ACTIVATIONS):
        return False
    if _is_linear(module, "down_proj"):
        return _is_linear(module, "gate_up_proj") or all(
            _is_linear(module, name) for name in ("gate_proj", "up_proj")
        )
    weights = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    return all(isinstance(weight, Tensor) and weight.dim() == 3 for weight in weights)


def _is_linear(module: nn.Module, name: str) -> bool:
    # Subclasses, quantised or with adapters, compute something else.
    found = getattr(module, name, None)
    return type(getattr(found, "stands_for", found)) is nn.Linear


def _activation(module: Any) -> Callable[[Tensor], Tensor]:
    return next(getattr(module, name) for name in _ACTIVATIONS if hasattr(module, name))


def _halves(weight: Tensor, bias: Tensor | None) -> tuple[Projection, Projection]:
    biases = (None, None) if bias is None else bias.chunk(2)
    gate, up = (Projection(*each) for each in zip(weight.chunk(2), biases, strict=True))
    return gate, up
