"""Compute: how attention over the prompt is computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from keyhole.attention import Logits
from keyhole.storage import Storage


class Prefill(ABC):
    """Attention of a prompt's queries over the cached tokens, themselves included.

    Attributes:
        any_mask: whether every mask is followed; else only causal ones, with padding on the left.
    """

    any_mask: ClassVar[bool] = True

    @abstractmethod
    def attend(self, query: Tensor, storage: Storage, logits: Logits, mask: Tensor | None) -> Tensor:
        """Attend `query [B, H, Q, D]` to what is stored; the last query is the newest token.

        Args:
            mask: bool `[B or 1, 1 or Hkv, Q, N]`, true where a query may look; None is causal without
                padding.

        Returns:
            `[B, H, Q, Dv]`.
        """
