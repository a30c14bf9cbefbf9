"""SALE: prompts attend to what an estimate from small integers says may matter."""

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

    It computes prompts and leaves steps to others: `sale + pqcache`. The paper:
    `sale(tile=32, pooled=false, rows=64, means=false)`.
    """

    name: ClassVar[str] = "sale"
    paper: ClassVar[str] = "SALE, arXiv 2505.24179"
    summary: ClassVar[str] = "block-sparse prompts: small integers tell which keys a tile of queries needs"
    facts: ClassVar[Facts] = Facts(
        stored="Nothing beside keys and values; the means of 32 keys each while a prompt is computed, on a "
        "GPU those of values, too.",
        select="Nothing in a step, which reads everything: R = N. A prompt costs `Q * N * D / 2` byte "
        "products for each query head beside attention to what it keeps; on the CPU they are of 8-bit "
        "integers of as many levels as 16-bit sums hold, 31 at D = 32 and 15 at D = 128.",
        best_for="Long prompts of models whose heads look at few places, on a CPU with native code; before "
        "any method that selects in steps.",
        weak_at="Heads that spread their attention keep most keys. Elsewhere than on a CPU with native code, "
        "or on a GPU with Triton, with soft-capped logits, with sink logits and where tokens were evicted "
        "prompts are computed whole.",
        differs=(
            Differs("thresholds", "always some", "works without; `keyhole calibrate sale` finds them"),
            Differs("tile", "32", "keys are read where they lie, so runs may be short; fewer are kept"),
            Differs("pooled", "false", "fewer keys are kept at the same error"),
            Differs("rows", "64", "kernels work on so few queries at a time anyway; fewer keys are kept"),
            Differs("means", "false", "far fewer keys are kept at the same error"),
            Differs("dense_below", "1025", "from there on it is not slower than dense attention"),
        ),
    )

    thresholds: str | None = options.directory(help="Written by `keyhole calibrate sale` for the model.")
    tau: float = options.number(
        0.008,
        ge=0,
        help="Without calibrated thresholds, one for all heads, a share of attention: keys are read that "
        "some query of a tile may give more than that; 0 reads everything.",
    )
    sinks: int = options.integer(
        32, ge=0, unit="tokens", help="First tokens that are always read, whole blocks of 32."
    )
    window: int = options.integer(
        128, ge=0, unit="tokens", help="Tokens before a tile of 64 queries that are always read."
    )
    tile: int = options.choice(
        1, WIDTHS, unit="tokens", help="Keys that are read or left out together: 1, 2, 4, 8, 16 or 32."
    )
    pooled: bool = options.flag(
        True,
        help="Shares are of the whole context, of which the means of blocks tell the least weight; else of "
        "sinks and window alone, so that more is read.",
    )
    rows: int = options.choice(
        16, SHARING, unit="tokens", help="Consecutive queries that choose keys together: 16, 32 or 64."
    )
    means: bool = options.flag(
        True,
        help="Keys that are left out of 32 count as so many of their mean; else they count for nothing.",
    )
    dense_below: int = options.integer(
        4096, ge=0, unit="tokens", help="Contexts shorter than that are computed whole."
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
