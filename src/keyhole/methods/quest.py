"""Quest: pages ranked by an upper bound of their logits, the baseline everyone compares with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import Differs, Facts
from keyhole.selection import BoxSelector, Selector
from keyhole.selection.boxes import default_page


@dataclass(frozen=True)
class Quest(RetrievalMethod):
    """Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", 2024.

    The paper reads the first two layers whole, and one list of pages for each query head; here every layer
    selects, and the query heads of a group share a list.
    """

    name: ClassVar[str] = "quest"
    paper: ClassVar[str] = "Quest, arXiv 2406.10774"
    summary: ClassVar[str] = "boxes around the keys of each page bound its logits, the best pages are read"
    facts: ClassVar[Facts] = Facts(
        stored="The greatest and the least number of each channel among the keys of a page, in the type "
        "of the keys, on the device.",
        select="Products of each box with the query's positive and negative parts, for the upper bounds "
        "and for the lower ones that mass is estimated by; a ranking of N / page pages.",
        best_for="Any model, with nothing to fit and an index that is exact at once, also while text "
        "changes. The baseline to compare with.",
        weak_at="Bounds are loose where a page holds unlike keys. A single token is read with its whole "
        "page, and the budget with it.",
        letters="page is `page`, or where that is None D / 8, but 4 to 16.",
        index="2 * D * e / page",
        scan="2 * D * e * N / page",
        products="4 * G * D * N / page",
        differs=(
            Differs(
                "page",
                "16",
                "the same for heads of 128; at 64, 8 reads more of the attention, with as large an index",
            ),
        ),
    )

    page: int | None = options.integer(
        None,
        ge=1,
        optional=True,
        unit="tokens",
        help="Tokens of a page. None takes an eighth of the head size, 4 to 16: boxes of as many bytes.",
    )

    def letters(self, head_dim: int, kv_heads: int) -> dict[str, float]:  # noqa: ARG002
        return {"page": self.page or default_page(head_dim)}

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [BoxSelector(self.page) for _ in info.layers]
