"""Keep every token."""

from __future__ import annotations

from torch import Tensor

from keyhole.retention.base import Retention


class KeepEverything(Retention):
    """Stores what arrives."""

    def admit(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys, values
