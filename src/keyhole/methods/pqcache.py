"""PQCache: product quantisation of keys, as maximum-inner-product search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import READ
from keyhole.methods.facts import ALIKE, FOLLOWS, ON_DEVICE, Differs, Facts
from keyhole.methods.renumbering import Renumbering
from keyhole.selection import ProductSelector, Selector, at_distance
from keyhole.selection.product import default_subspaces


@dataclass(frozen=True)
class PQCache(Renumbering):
    """Zhang et al., "PQCache: Product Quantization-based KVCache for Long Context LLM Inference", 2025.

    The defaults are a preset of Keyhole: 4-bit codes, which scan fastest, along learned axes. The paper has
    `pqcache(subspaces=2, bits=6, rotate=false)`, and `subspaces=4, bits=8` at 128K tokens.
    """

    name: ClassVar[str] = "pqcache"
    paper: ClassVar[str] = "PQCache, arXiv 2407.12820"
    summary: ClassVar[str] = "ranks all tokens by product-quantised keys, reads the best exactly"
    facts: ClassVar[Facts] = Facts(
        stored="A code per key. Per KV head: codebooks (`4 * C * D`), a rotation, and the second moment of "
        "the quantisation error (`4 * D * D` each), as 32-bit floats. With `error`, the "
        "quantisation error of each key. All on the device.",
        select="Sums M table entries per token and query head (`G * M * N` additions of small integers), and "
        "ranks N tokens.",
        best_for="Long prompts, small budgets and scattered tokens: every token is ranked individually. Mass "
        "budgets: its estimates account for the quantisation error.",
        weak_at="k-means runs in the first step after a prompt. Codebooks are a fixed overhead that "
        "dominates at short contexts. Distribution shift degrades recall until drift detection triggers a "
        "refit.",
        letters="M is `subspaces`; by default the first divisor of D that is at least D / 4 and 16, and at "
        "most D / 2. C is `2**bits`. E is 2 with a budget of error, else 0.",
        index="(ceil(M / 2) if bits == 4 else M) + E",
        scan="N * ((ceil(M / 2) if bits == 4 else M) + E) + 4 * (C * D + (1 + rotate) * D * D)",
        products="G * (C * D + (1 + rotate) * D * D)",
        differs=(
            Differs("budget", "0.1 or 0.2 of the prompt, half of it window", FOLLOWS),
            Differs("window", "0.05 or 0.1 of the prompt", ALIKE),
            Differs("subspaces", "2; 4 at 128K tokens", "more sub-spaces of 4 bits scan fastest"),
            Differs("bits", "6; 8 at 128K tokens", "tables of 16 entries fit byte shuffles"),
            Differs("rotate", "false", "more attention mass is read at equal size (docs/LOG.md)"),
            Differs(
                "iterations",
                "3 to 300, as many as overlap with the prompt",
                "selection must not depend on the speed of the machine",
            ),
            Differs("sample", "all keys", "fitting time does not grow with the context"),
            Differs("place", "host, with 4,096 tokens of each layer resident", ON_DEVICE),
        ),
    )

    budget: Budget = options.budget(Budget(fraction=0.1), error=True, unit="tokens", help=READ)
    sinks: int = 32
    subspaces: int | None = options.integer(
        None,
        ge=1,
        optional=True,
        help="Number of sub-spaces; must divide the head size. None takes one bit per channel with 4-bit "
        "codes, at least 64 bits per key.",
    )
    bits: int = options.integer(4, ge=1, le=8, unit="bits", help="Bits per code.")
    rotate: bool = options.flag(
        True, help="Quantise along learned axes (optimised product quantisation) instead of the channels."
    )
    iterations: int = options.integer(10, ge=1, le=300, help="Lloyd iterations.")
    sample: int = options.integer(
        8192,
        ge=2,
        unit="tokens",
        help="Keys per head that codebooks are fitted to, at least `2**bits`; all keys are then encoded.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample < 2**self.bits:
            raise SpecError(
                f"{self.name}: sample={self.sample} is out of range; give at least 2**bits, {2**self.bits}"
            )

    def letters(self, head_dim: int, kv_heads: int) -> dict[str, float]:  # noqa: ARG002
        errors = 0 if self.budget.error is None else 2
        return {"M": self.subspaces or default_subspaces(head_dim), "C": 2**self.bits, "E": errors}

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [at_distance(self._selector(), self.scoring(info, place)) for place in info.layers]

    def _selector(self) -> Selector:
        return ProductSelector(
            subspaces=self.subspaces,
            bits=self.bits,
            rotate=self.rotate,
            iterations=self.iterations,
            sample=self.sample,
            errors=self.budget.error is not None,
        )
