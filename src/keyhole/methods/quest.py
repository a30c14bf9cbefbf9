"""Quest: pages ranked by an upper bound of their logits, the baseline everyone compares with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.facts import Differs, Facts
from keyhole.methods.renumbering import Renumbering
from keyhole.selection import BoxSelector, Selector, at_distance
from keyhole.selection.boxes import default_page


@dataclass(frozen=True)
class Quest(Renumbering):
    """Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", 2024.

    The paper reads the first two layers whole and selects per query head; here every layer selects, and the
    query heads of a group share one list of pages.
    """

    name: ClassVar[str] = "quest"
    paper: ClassVar[str] = "Quest, arXiv 2406.10774"
    summary: ClassVar[str] = "reads the pages with the highest upper bound of their logits"
    facts: ClassVar[Facts] = Facts(
        stored="The channel-wise maximum and minimum of the keys of each page, in the dtype of the keys, on "
        "the device.",
        select="Upper bounds per page, and lower bounds for estimating mass, from the query's positive and "
        "negative parts; a ranking of N / page pages.",
        best_for="Any model: nothing to fit, and an index that is always up to date, also when the text "
        "changes. The usual baseline.",
        weak_at="Bounds are loose for pages of dissimilar keys. A single important token costs a whole page "
        "of budget.",
        letters="`page` is by default D / 8, limited to 4 to 16.",
        index="2 * D * e / page",
        scan="2 * D * e * N / page",
        products="4 * G * D * N / page",
        differs=(
            Differs(
                "page",
                "16",
                "the same for heads of 128; for heads of 64, pages of 8 read more attention mass with an "
                "index of equal size",
            ),
        ),
    )

    page: int | None = options.integer(
        None,
        ge=1,
        optional=True,
        unit="tokens",
        help="Tokens per page. None takes an eighth of the head size, 4 to 16.",
    )

    def letters(self, head_dim: int, kv_heads: int) -> dict[str, float]:  # noqa: ARG002
        return {"page": self.page or default_page(head_dim)}

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [at_distance(BoxSelector(self.page), self.scoring(info, place)) for place in info.layers]
