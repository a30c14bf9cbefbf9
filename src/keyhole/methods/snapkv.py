"""SnapKV, and two variants of its budget allocation: PyramidKV over layers, Ada-KV over heads."""

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
    summary: ClassVar[str] = "keeps what the prompt's newest tokens attend to, per KV head"
    facts: ClassVar[Facts] = Facts(
        stored="Kept keys and values, their positions, and the queries of the window.",
        select="No selection: all kept tokens are read.",
        best_for="A question at the end of a long prompt, and a short answer.",
        weak_at="Dropped tokens are lost to later questions. Prompts whose end does not contain the "
        "question.",
        kept=EVICTED,
        differs=(
            Differs("sinks", "0", "evicting the first tokens can end generation at once"),
            Differs("kernel", "5, averaged; 7 in the paper", "max pooling, as the paper says"),
        ),
    )

    kernel: int = options.integer(
        7,
        ge=1,
        unit="tokens",
        help="Kernel size of the max pooling over attention scores, an odd number.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise SpecError(f"{self.name}: kernel={self.kernel} is even; give an odd number")

    def scorer(self, info: ModelInfo, place: int) -> Scorer:  # noqa: ARG002
        return Observed(self.window, self.kernel)


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """Cai et al., "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling", 2024.

    SnapKV's scores; the budget decreases linearly over the layers, to a twentieth of the average in the last.
    """

    name: ClassVar[str] = "pyramidkv"
    paper: ClassVar[str] = "PyramidKV, arXiv 2406.02069"
    summary: ClassVar[str] = "SnapKV with larger budgets in lower layers"

    layers: str = "pyramid"


@dataclass(frozen=True)
class AdaKV(SnapKV):
    """Feng et al., "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM
    Inference", 2024.

    SnapKV's scores; the heads of a layer compete for one budget, with a floor of 20% of an equal share each.
    """

    name: ClassVar[str] = "adakv"
    paper: ClassVar[str] = "Ada-KV, arXiv 2407.11550"
    summary: ClassVar[str] = "SnapKV with larger budgets for heads with spread attention"

    heads: str = "adaptive"
