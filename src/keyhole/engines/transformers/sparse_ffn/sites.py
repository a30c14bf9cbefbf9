"""The modules of a model that can skip weights: gated feed-forwards, experts, projections of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.transformers.sparse_ffn.obstacles import (
    ACTIVATIONS,
    gated_obstacle,
    is_experts,
    linear_obstacle,
    looks_gated,
)
from keyhole.feedforward import Gated, Projection

_PROJECTIONS = ("q_proj", "o_proj")
_TOLD = 3  # obstacles that a message names


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The text decoder, by whose names its modules go."""
    return model.get_decoder()


def gated_sites(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Gated feed-forwards, and all experts of a layer as one, by name; those with an obstacle stay dense.

    Raises:
        UnsupportedModelError: there are none.
    """
    alike = {name: module for name, module in decoder_of(model).named_modules() if looks_gated(module)}
    obstacles = {name: gated_obstacle(module) for name, module in alike.items()}
    found = {name: module for name, module in alike.items() if obstacles[name] is None}
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no feed-forward with known gate, up and down projections"
            f"{_told(obstacles)}, so no channels can be skipped; leave `chess` out"
        )
    return found


def input_sites(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The query and output projections of attention by name; where one has an obstacle both stay dense.

    Raises:
        UnsupportedModelError: there are none, for instance where queries and keys share a projection.
    """
    found: dict[str, nn.Linear] = {}
    obstacles: dict[str, str | None] = {}
    for name, module in decoder_of(model).named_modules():
        parts = {f"{name}.{part}": getattr(module, part, None) for part in _PROJECTIONS}
        if all(isinstance(part, nn.Module) for part in parts.values()):
            here = {each: linear_obstacle(cast(nn.Module, part)) for each, part in parts.items()}
            obstacles |= here
            found |= cast(dict[str, nn.Linear], {} if any(here.values()) else parts)
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no projection of queries alone whose weights could be skipped"
            f"{_told(obstacles)}; give chess(attention=false)"
        )
    return found


def is_input(name: str) -> bool:
    """Whether a name is one of `input_sites`."""
    return name.rpartition(".")[2] in _PROJECTIONS


def _told(obstacles: Mapping[str, str | None]) -> str:
    reasons = [f"{name}{reason}" for name, reason in obstacles.items() if reason is not None]
    more = f" and {len(reasons) - _TOLD} more" if len(reasons) > _TOLD else ""
    return f" ({', '.join(reasons[:_TOLD])}{more})" if reasons else ""


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


def _activation(module: Any) -> Callable[[Tensor], Tensor]:
    return next(getattr(module, name) for name in ACTIVATIONS if hasattr(module, name))


def _halves(weight: Tensor, bias: Tensor | None) -> tuple[Projection, Projection]:
    biases = (None, None) if bias is None else bias.chunk(2)
    gate, up = (Projection(*each) for each in zip(weight.chunk(2), biases, strict=True))
    return gate, up
