"""SALE: prompts attend to what an estimate from small integers says may matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.kernels import Reach
from keyhole.kernels.sale.tiles import SHARING, WIDTHS
from keyhole.methods.base import Method, check_flag, check_number, check_range
from keyhole.methods.facts import Differs, Facts
from keyhole.prefill import Prefill, SalePrefill
from keyhole.prefill.salefile import read_thresholds


@dataclass(frozen=True)
class Sale(Method):
    """Ji et al., "SALE: Low-bit Estimation for Efficient Sparse Attention in Long-context LLM Prefilling",
    2025.

    It computes prompts and leaves steps to others: `sale + pqcache`. The paper:
    `sale(tile=32, pooled=false, rows=64, means=false)`.

    Attributes:
        thresholds: directory that `keyhole calibrate sale` has written for the model.
        tau: without it, one threshold for all heads, a share of attention: keys are read that some query of a
            tile may give more than that; 0 reads everything.
        sinks: first tokens that are always read, whole blocks of 32.
        window: tokens before a tile of 64 queries that are always read.
        tile: keys that are read or left out together: 1, 2, 4, 8, 16 or 32.
        pooled: shares are of the whole context, of which the means of blocks tell the least weight; else of
            sinks and window alone, so that more is read.
        rows: consecutive queries that choose keys together: 16, 32 or 64.
        means: keys that are left out of 32 count as so many of their mean; else they count for nothing.
        dense_below: contexts shorter than that are computed whole.
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

    thresholds: str | None = None
    tau: float = 0.008
    sinks: int = 32
    window: int = 128
    tile: int = 1
    pooled: bool = True
    rows: int = 16
    means: bool = True
    dense_below: int = 4096

    def __post_init__(self) -> None:
        if self.thresholds is not None and not isinstance(self.thresholds, str):
            raise SpecError(f"{self.name}: thresholds={self.thresholds!r} is not the name of a directory")
        check_number(self.name, "tau", self.tau, 0)
        for option in ("sinks", "window", "dense_below"):
            check_range(self.name, option, getattr(self, option), 0)
        if self.tile not in WIDTHS or isinstance(self.tile, bool):
            raise SpecError(f"{self.name}: tile={self.tile!r} is not one of {', '.join(map(str, WIDTHS))}")
        if self.rows not in SHARING:
            raise SpecError(f"{self.name}: rows={self.rows!r} is not one of {', '.join(map(str, SHARING))}")
        for option in ("pooled", "means"):
            check_flag(self.name, option, getattr(self, option))

    @property
    def reach(self) -> Reach:
        """What a tile of queries reads for certain, and in which runs the rest."""
        return Reach(self.sinks, self.window, self.tile, self.pooled, self.rows, self.means)

    def prefill(self, info: ModelInfo) -> list[Prefill]:
        taus = [self.tau] * len(info)
        if self.thresholds is not None and info.layers:
            taus = read_thresholds(self.thresholds, info, self.reach)
        return [SalePrefill(tau, self.reach, dense_below=self.dense_below) for tau in taus]
