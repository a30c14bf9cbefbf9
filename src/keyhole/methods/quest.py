"""Quest: pages ranked by an upper bound of their logits, the baseline everyone compares with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.facts import Differs, Facts
from keyhole.methods.renumbering import Renumbering
from keyhole.selection import BoxSelector, CodedBoxSelector, Selector, at_distance
from keyhole.selection.boxes import default_page
from keyhole.selection.coded_boxes import PAGE


@dataclass(frozen=True)
class Quest(Renumbering):
    """Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", 2024.

    The paper reads the first two layers whole and selects per query head; here every layer selects, and the
    query heads of a group share one list of pages. Boxes of 4 bits, which are not the paper's, are rounded
    outwards; `quest(page=16, box_dtype=auto)` has the paper's.
    """

    name: ClassVar[str] = "quest"
    paper: ClassVar[str] = "Quest, arXiv 2406.10774"
    summary: ClassVar[str] = "reads the pages with the highest upper bound of their logits"
    facts: ClassVar[Facts] = Facts(
        stored="The channel-wise maximum and minimum of the keys of each page, in 4 bits each, and the range "
        "of each channel, on the device.",
        select="Upper bounds per page, and lower bounds for estimating mass, from the query's positive and "
        "negative parts; a ranking of N / page pages.",
        best_for="Any model: hardly anything to fit, and an index that is always up to date, also when the "
        "text changes. The usual baseline.",
        weak_at="Bounds are loose for pages of dissimilar keys. A single important token costs a whole page "
        "of budget.",
        letters="With `box_dtype=auto`, `page` is by default D / 8, limited to 4 to 16.",
        index="2 * D * (0.5 if box_dtype == 'int4' else e) / page",
        scan="2 * D * (0.5 if box_dtype == 'int4' else e) * N / page + (8 * D if box_dtype == 'int4' else 0)",
        products="4 * G * D * N / page",
        differs=(
            Differs(
                "page",
                "16",
                "smaller pages read more attention mass; in 4 bits, their index takes no more bytes than "
                "that of pages of 16 in 16 bits",
            ),
            Differs(
                "box_dtype", "auto", "selects as well as full precision, at a quarter of the bytes or less"
            ),
        ),
    )

    page: int | None = options.integer(
        None,
        ge=1,
        optional=True,
        unit="tokens",
        help="Tokens per page. None is 4, or, with `box_dtype=auto`, an eighth of the head size, 4 to 16.",
    )
    box_dtype: str = options.choice(
        "int4",
        ("int4", "auto"),
        help='Precision of stored boxes: "int4" rounds them outwards to 16 levels per channel, "auto" is the '
        "dtype of the keys.",
    )

    def letters(self, head_dim: int, kv_heads: int) -> dict[str, float]:  # noqa: ARG002
        return {"page": self.page or (PAGE if self.box_dtype == "int4" else default_page(head_dim))}

    def selectors(self, info: ModelInfo) -> list[Selector]:
        selector = CodedBoxSelector if self.box_dtype == "int4" else BoxSelector
        return [at_distance(selector(self.page), self.scoring(info, place)) for place in info.layers]
