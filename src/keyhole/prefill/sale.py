"""Block-sparse attention of prompts by an estimate from small integers (SALE).

Source: "SALE: Low-bit Estimation for Efficient Sparse Attention in Long-context LLM Prefilling",
arXiv 2505.24179.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.attention import Logits
from keyhole.core.masks import Visible
from keyhole.kernels import Reach
from keyhole.prefill.base import Prefill
from keyhole.prefill.dense import DensePrefill
from keyhole.storage import Storage


class SalePrefill(Prefill):
    """Tiles of 64 queries read sinks, a window, and what may have a share of attention above a threshold.

    Attention is exact and dense where that is not known to pay, or not known to be right: in contexts shorter
    than `dense_below`, of fewer than 64 new queries, where every threshold is 0, with soft-capped logits or
    sink logits, and, unless `impl` asks for the reference, where there is no native or Triton code for the
    tensors at hand, or dense attention by tiles (AMX, bfloat16) is faster. Under masks other than causal with
    padding on the left, the layer computes densely.

    Args:
        tau: a threshold for each query head, or one for all of them; 0 reads everything.
        reach: what is always read, and the runs of keys that are read or left out together.
        dense_below: tokens below which everything is read.
        impl: who computes it: "auto" or "reference".
    """

    any_mask = False

    def __init__(
        self, tau: float | Tensor, reach: Reach, *, dense_below: int = 0, impl: str = "auto"
    ) -> None:
        self.tau = torch.as_tensor(tau, dtype=torch.float32)
        self.reach, self.dense_below, self.impl = reach, dense_below, impl
        self._dense = DensePrefill()

    @torch.no_grad()
    def attend(self, query: Tensor, storage: Storage, logits: Logits, mask: Tensor | None) -> Tensor:
        batch, heads, queries, _ = query.shape
        plain = logits.softcap is None and logits.sink_logits is None
        long = storage.length >= self.dense_below and queries >= kernels.TILE_ROWS
        if not (plain and long and bool((self.tau > 0).any())):
            return self._dense.attend(query, storage, logits, mask)
        keys, values = storage.keys(), storage.values()
        if self.impl == "auto" and not kernels.sale_pays(query, keys, values):
            return self._dense.attend(query, storage, logits, mask)
        return kernels.sale_attention(
            query,
            keys,
            values,
            self.tau.to(query.device).expand(heads),
            scale=logits.scale,
            reach=self.reach,
            padding=Visible(mask, batch).padding,
            impl=self.impl,
        ).out
