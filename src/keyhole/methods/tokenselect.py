"""TokenSelect: a soft vote over all heads selects the tokens that a layer reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.core.rope import FixedDistance
from keyhole.methods import options
from keyhole.methods.base import READ
from keyhole.methods.facts import ALIKE, Differs, Facts
from keyhole.methods.renumbering import Renumbering
from keyhole.selection import DistantVoteSelector, Selector, Vote, VoteSelector


@dataclass(frozen=True)
class TokenSelect(Renumbering):
    """Wu et al., "TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic
    Token-Level KV Cache Selection", 2025.

    The paper has `tokenselect(budget=2048, sinks=128, window=512, distance=512, renumber=true,
    scaled_vote=false, sparse_prefill=true, voters=0)`. It renumbers positions and scores at a constant
    distance because its contexts exceed the models' range; within the range, true positions are what the
    model was trained on.
    """

    name: ClassVar[str] = "tokenselect"
    paper: ClassVar[str] = "TokenSelect, arXiv 2411.02886"
    summary: ClassVar[str] = "a soft vote of all query heads over exact logits; the same tokens for all heads"
    facts: ClassVar[Facts] = Facts(
        stored="No index: the keys themselves are scored. With `reuse`, the last query and its selection. "
        "With `distance`, a copy of the keys before RoPE (`D * e` per token).",
        select="Exact logits of every key, a vote per query head, and a ranking of N tokens per layer; none "
        "in steps that `reuse` covers.",
        best_for="One list of tokens for all heads of a layer, as paged attention needs it. Sparse prefill "
        "with the same selection (`sparse_prefill`).",
        weak_at="Reads every key in every step, so with D = Dv it reads at least half of what dense "
        "attention does. Heads that need different tokens share one list. With `reuse`, tokens that left "
        "the window since the last selection are not read.",
        scan="D * e * N",
        products="G * N * (D + 2)",
        differs=(
            Differs("budget", "2048", ALIKE),
            Differs("sinks", "128", ALIKE),
            Differs("window", "512", ALIKE),
            Differs(
                "scaled_vote",
                "false",
                "votes are attention weights, instead of almost all on the best few tokens",
            ),
            Differs(
                "reuse", "0.9; off in the released code", "reused selections miss tokens that left the window"
            ),
            Differs("sparse_prefill", "true", "prompts are computed exactly by default"),
            Differs("voters", "0", "the mean of a chunk's queries hides what a question's few ask for"),
            Differs("renumber", "true", "models are trained on true positions, within their range"),
            Differs("distance", "512, the window", "as for `renumber`"),
        ),
    )

    budget: Budget = options.budget(Budget(fraction=0.1), error=True, unit="tokens", help=READ)
    per_head: bool = options.flag(False, help="Select tokens per KV head instead of one list per layer.")
    scaled_vote: bool = options.flag(
        True, help="Vote by the attention softmax; otherwise by the softmax of unscaled logits."
    )
    reuse: float | None = options.number(
        None,
        ge=-1,
        le=1,
        optional=True,
        help="Cosine similarity of queries above which the last selection is reused; None selects in every "
        "step.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget.error is not None and self.reuse is not None:
            raise SpecError(
                f"{self.name}: reuse={self.reuse} keeps a selection whose error is that of another "
                f"query; leave it out, or give tokens or a fraction of the context as budget instead of "
                f"{self.budget}"
            )

    @property
    def needs_positions(self) -> bool:
        return self.renumber or not self.per_head

    @property
    def vote(self) -> Vote:
        return Vote(per_head=self.per_head, scaled=self.scaled_vote)

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [self._selector(self.scoring(info, place)) for place in info.layers]

    def _selector(self, scoring: FixedDistance | None) -> Selector:
        if scoring is None:
            return VoteSelector(self.vote, self.reuse)
        return DistantVoteSelector(self.vote, scoring, self.reuse)
