"""SALE: block-sparse prefill by a low-bit estimate of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.kernels import Reach
from keyhole.kernels.sale.tiles import SHARING, WIDTHS
from keyhole.methods import options
from keyhole.methods.base import Method
from keyhole.methods.facts import Differs, Facts
from keyhole.prefill import Prefill, SalePrefill
from keyhole.prefill.salefile import read_thresholds


@dataclass(frozen=True)
class Sale(Method):
    """Ji et al., "SALE: Low-bit Estimation for Efficient Sparse Attention in Long-context LLM Prefilling",
    2025.

    Computes prompts; combine it with a method for decode steps: `sale + pqcache`. The paper has
    `sale(tile=32, pooled=false, rows=64, means=false)`.
    """

    name: ClassVar[str] = "sale"
    paper: ClassVar[str] = "SALE, arXiv 2505.24179"
    summary: ClassVar[str] = (
        "block-sparse prefill: a low-bit estimate finds the keys that a tile of queries needs"
    )
    facts: ClassVar[Facts] = Facts(
        stored="The full KV cache. While a prompt is computed, also the mean key (on a GPU, also the mean "
        "value) of every 32 tokens.",
        select="None in decode steps, which read everything: R = N. In a prompt, `Q * N * D / 2` byte "
        "products per query head, in addition to attention over the selected keys. On a CPU they use 8-bit "
        "integers with as many levels as 16-bit sums allow: 31 at D = 32, 15 at D = 128.",
        best_for="Long prompts of models with concentrated attention, on a CPU with native kernels; combines "
        "with any method that selects in decode steps.",
        weak_at="Heads with spread attention read most keys. Prompts are computed densely without native "
        "kernels or Triton, in bfloat16 on CPUs with AMX (dense attention is faster there), with "
        "soft-capped or sink logits, and where tokens were evicted.",
        differs=(
            Differs("thresholds", "always calibrated", "works without; `keyhole calibrate sale` finds them"),
            Differs("tau", "0.008 and less, by head", "one for all heads; half of the error of 0.008"),
            Differs("tile", "32", "keys are read in place, so short runs are cheap; fewer keys are read"),
            Differs("pooled", "false", "fewer keys are read at the same error"),
            Differs("rows", "64", "kernels process 16 queries at a time anyway; fewer keys are read"),
            Differs("means", "false", "far fewer keys are read at the same error"),
            Differs("dense_below", "1025", "from here on it is no slower than dense attention"),
        ),
    )

    thresholds: str | None = options.directory(
        help="Directory written by `keyhole calibrate sale` for this model."
    )
    tau: float = options.number(
        0.002,
        ge=0,
        help="Threshold for all heads, without calibrated ones: keys that may receive more than this share "
        "of attention from a query of the tile are read. 0 reads everything.",
    )
    sinks: int = options.integer(
        32, ge=0, unit="tokens", help="First tokens, always read, in whole blocks of 32."
    )
    window: int = options.integer(
        128, ge=0, unit="tokens", help="Tokens before a tile of 64 queries, always read."
    )
    tile: int = options.choice(
        1, WIDTHS, unit="tokens", help="Keys that are read or skipped together: 1, 2, 4, 8, 16 or 32."
    )
    pooled: bool = options.flag(
        True,
        help="Compute shares relative to the whole context, with skipped blocks estimated by their means; "
        "otherwise relative to sinks and window only, which reads more.",
    )
    rows: int = options.choice(
        16, SHARING, unit="tokens", help="Consecutive queries that share one selection of keys: 16, 32 or 64."
    )
    means: bool = options.flag(
        True,
        help="Approximate the skipped keys of each block of 32 by their mean; otherwise they are ignored.",
    )
    dense_below: int = options.integer(
        4096, ge=0, unit="tokens", help="Prompts at shorter contexts are computed densely."
    )

    @property
    def reach(self) -> Reach:
        """What a tile of queries reads for certain, and in which runs the rest."""
        return Reach(self.sinks, self.window, self.tile, self.pooled, self.rows, self.means)

    def prefill(self, info: ModelInfo) -> list[Prefill]:
        taus = [self.tau] * len(info)
        if self.thresholds is not None and info.layers:
            taus = read_thresholds(self.thresholds, info, self.reach)
        return [SalePrefill(tau, self.reach, dense_below=self.dense_below) for tau in taus]
