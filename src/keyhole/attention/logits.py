"""How a model turns query-key products into logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Logits(NamedTuple):
    """How a model turns query-key products into logits.

    Attributes:
        scale: what products are multiplied by.
        softcap: logits become `softcap * tanh(logits / softcap)`, where given.
        sink_logits: `[H]`, one more logit a head that takes mass and gives nothing, where given.
    """

    scale: float
    softcap: float | None = None
    sink_logits: Tensor | None = None

    def with_sinks(self, lse: Tensor) -> Tensor:
        """Log-sum-exps `[..., H]` of some logits, and of the sink logit of each head where there is one."""
        return lse if self.sink_logits is None else torch.logaddexp(lse, self.sink_logits.float())
