"""What a method is told about the model whose layers it serves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """The served layers of one model.

    Attributes:
        layers: their places in the model, ascending; layers of another kind of attention are left out.
        break_even: context length that `dense_below="auto"` stands for.
    """

    layers: tuple[int, ...]
    break_even: int = 0

    @classmethod
    def of(cls, setting: Setting | int) -> Setting:
        """A setting itself, or one of so many layers that are all a model has."""
        return cls(tuple(range(setting))) if isinstance(setting, int) else setting

    def __len__(self) -> int:
        return len(self.layers)
