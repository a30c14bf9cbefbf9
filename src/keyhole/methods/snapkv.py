"""SnapKV, and the two that share its budget out otherwise: PyramidKV over layers, Ada-KV over heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.eviction import EvictionMethod
from keyhole.methods.facts import EVICTED, Differs, Facts
from keyhole.retention import Observed, Scorer


@dataclass(frozen=True)
class SnapKV(EvictionMethod):
    """Li et al., "SnapKV: LLM Knows What You Are Looking for Before Generation", NeurIPS 2024."""

    name: ClassVar[str] = "snapkv"
    paper: ClassVar[str] = "SnapKV, arXiv 2404.14469"
    summary: ClassVar[str] = "keeps what the prompt's newest tokens attend to, for each KV head"
    facts: ClassVar[Facts] = Facts(
        stored="The keys and values that were kept, their positions, and the window's queries.",
        select="Nothing is selected: all that was kept is read.",
        best_for="A question at the end of a long prompt, and an answer that is short.",
        weak_at="A later question may need what was dropped. Prompts whose end does not show what is asked.",
        kept=EVICTED,
        differs=(
            Differs("sinks", "0", "evicting the first tokens can end generation at once"),
            Differs("kernel", "5, averaged; 7 in the paper", "the most nearby, as the paper says"),
        ),
    )

    kernel: int = options.integer(
        7,
        ge=1,
        unit="tokens",
        help="Tokens over which the attention that the window pays is pooled, an odd number.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise SpecError(f"{self.name}: kernel={self.kernel} has no middle; give an odd number")

    def scorer(self, info: ModelInfo, place: int) -> Scorer:  # noqa: ARG002
        return Observed(self.window, self.kernel)


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """Cai et al., "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling", 2024.

    SnapKV's scores; the budget falls linearly from layer to layer, to a twentieth in the last one.
    """

    name: ClassVar[str] = "pyramidkv"
    paper: ClassVar[str] = "PyramidKV, arXiv 2406.02069"
    summary: ClassVar[str] = "SnapKV with more tokens in lower layers"

    layers: str = "pyramid"


@dataclass(frozen=True)
class AdaKV(SnapKV):
    """Feng et al., "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM
    Inference", 2024.

    SnapKV's scores; a layer's heads compete for one budget, of which each has a fifth of its part for sure.
    """

    name: ClassVar[str] = "adakv"
    paper: ClassVar[str] = "Ada-KV, arXiv 2407.11550"
    summary: ClassVar[str] = "SnapKV with more tokens for heads whose attention is spread"

    heads: str = "adaptive"
