"""What a method is told about the model whose layers it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from keyhole.core.break_even import ALWAYS, BreakEven
from keyhole.core.rope import PlainRope, Rope
from keyhole.feedforward.fit import Fitted, Rule


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
        activations: what is known of its modules from random tokens, by a rule of `feedforward`, those of
            attention among them or not; None without a model.
        device: where keys and values come from; None without a model, which is the CPU.
    """

    layers: tuple[int, ...]
    break_even: BreakEven = ALWAYS
    rope: Callable[[int], Rope] = _plain_rope
    fingerprint: Callable[[], str] | None = None
    activations: Callable[[Rule, bool], dict[str, Fitted]] | None = None
    device: torch.device | None = None

    @classmethod
    def of(cls, info: ModelInfo | int) -> ModelInfo:
        """A ModelInfo itself, or one of so many layers that are all a model has."""
        return cls(tuple(range(info))) if isinstance(info, int) else info

    def share(self, nbytes: int) -> int:
        """Of so many bytes for all layers together, what one layer gets."""
        return -(-nbytes // max(1, len(self)))

    def __len__(self) -> int:
        return len(self.layers)
