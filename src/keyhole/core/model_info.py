"""What a method knows of the model whose layers it serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from keyhole.core.break_even import ALWAYS, BreakEven
from keyhole.core.rope import PlainRope, Rope


class Projections(Protocol):
    """The projections of one attention layer. Each is looked for when it is asked for.

    Legend: B batch, H query heads, T tokens, D size of a query, Dv size of a value, E hidden size.
    """

    def queries(self, hidden: Tensor) -> Tensor:
        """Queries `[B, H, T, D]` before RoPE of the inputs of attention `hidden [B, T, E]` (W_q).

        Raises:
            UnsupportedModelError: the layer does not make its queries by a projection that is known here.
        """
        ...

    def output(self) -> Tensor:
        """What each head's output is multiplied with (W_o), `[H, Dv, E]`, in the type of the model.

        Raises:
            UnsupportedModelError: the layer has no output projection that is known here.
        """
        ...


class ChannelStatistics(Protocol):
    """What is known of the activations of one module."""

    def threshold(self, sparsity: float) -> Tensor:
        """The magnitude below which that share of channels is."""
        ...


class Activations(Protocol):
    """Finds the statistics of a model's modules, by name, from random tokens."""

    def __call__(self, rule: Any, attention: bool, /) -> Mapping[str, ChannelStatistics]:
        """By a rule of `keyhole.feedforward`; with `attention`, those of its projections among them."""
        ...


def _plain_rope(_place: int) -> Rope:
    return PlainRope()


@dataclass(frozen=True)
class ModelInfo:
    """The served layers of one model.

    Attributes:
        layers: their places in the model, ascending; layers of another kind of attention are left out.
        break_even: context lengths that `dense_below="auto"` stands for.
        rope: the rotation of a layer, by its place in the model; without a model the plain one of base 10000.
        fingerprint: what tells the model from others, as files made for it name it; None without a model.
        activations: what is known of its modules; None without a model.
        projections: those of a layer, by its place in the model; None without a model.
        device: where keys and values come from; None without a model, which is the CPU.
        positions: the longest text the model was made for; None where that is not known.
    """

    layers: tuple[int, ...]
    break_even: BreakEven = ALWAYS
    rope: Callable[[int], Rope] = _plain_rope
    fingerprint: Callable[[], str] | None = None
    activations: Activations | None = None
    projections: Callable[[int], Projections] | None = None
    device: torch.device | None = None
    positions: int | None = None

    @classmethod
    def of(cls, info: ModelInfo | int) -> ModelInfo:
        """A ModelInfo itself, or one of so many layers that are all a model has."""
        return cls(tuple(range(info))) if isinstance(info, int) else info

    def share(self, nbytes: int) -> int:
        """Of so many bytes for all layers together, what one layer gets."""
        return -(-nbytes // max(1, len(self)))

    def __len__(self) -> int:
        return len(self.layers)
