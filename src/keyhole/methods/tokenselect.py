"""TokenSelect: a soft vote over all heads selects the tokens that a layer reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.core.rope import FixedDistance
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import ALIKE, Differs, Facts
from keyhole.prefill import ChunkedPrefill, Prefill
from keyhole.selection import DistantVoteSelector, Selector, Vote, VoteSelector
from keyhole.storage import RenumberedStorage, Storage


@dataclass(frozen=True)
class TokenSelect(RetrievalMethod):
    """Wu et al., "TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic
    Token-Level KV Cache Selection", 2025.

    The paper has `tokenselect(budget=2048, sinks=128, window=512, distance=512, renumber=true,
    scaled_vote=false, sparse_prefill=true)`. It renumbers positions and scores at a constant distance because
    its contexts exceed the models' range; within the range, true positions are what the model was trained on.
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
            Differs("renumber", "true", "models are trained on true positions, within their range"),
            Differs("distance", "512, the window", "as for `renumber`"),
        ),
    )

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
    sparse_prefill: bool = options.flag(
        False, help="Also select in prompts, once per chunk of queries, with the same budget."
    )
    chunk: int = options.integer(512, ge=1, unit="tokens", help="Queries per chunk of `sparse_prefill`.")
    renumber: bool = options.flag(
        False,
        help="Renumber the tokens that are read to consecutive positions, for contexts beyond the model's "
        "range; prompts also need `sparse_prefill`. Votes are not affected.",
    )
    distance: int | None = options.integer(
        None,
        ge=0,
        optional=True,
        unit="tokens",
        help="Score all keys at this constant relative position; None scores them at their own. At least the "
        "window, and within the model's range.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance is not None and self.distance < self.window:
            raise SpecError(
                f"{self.name}: distance={self.distance} is out of range; give at least the window, "
                f"{self.window}"
            )
        if self.renumber:
            self._check_renumbering()

    @property
    def needs_positions(self) -> bool:
        return not self.per_head

    def prefill(self, info: ModelInfo) -> list[Prefill] | None:
        if not self.sparse_prefill:
            return None
        return [
            ChunkedPrefill(
                self._vote,
                self.chunk,
                self.budget,
                self.sinks,
                self.window,
                scoring=self._scoring(info, place),
                renumber=info.rope(place) if self.renumber else None,
            )
            for place in info.layers
        ]

    def storage(self, info: ModelInfo) -> list[Storage] | None:
        if not self.renumber:
            return super().storage(info)
        return [RenumberedStorage(info.rope(place), self.budget) for place in info.layers]

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [self._selector(self._scoring(info, place)) for place in info.layers]

    def _selector(self, scoring: FixedDistance | None) -> Selector:
        if scoring is None:
            return VoteSelector(self._vote, self.reuse)
        return DistantVoteSelector(self._vote, scoring, self.reuse)

    def _scoring(self, info: ModelInfo, place: int) -> FixedDistance | None:
        return None if self.distance is None else FixedDistance(info.rope(place), self.distance)

    @property
    def _vote(self) -> Vote:
        return Vote(per_head=self.per_head, scaled=self.scaled_vote)

    def _check_renumbering(self) -> None:
        if self.budget.mass is not None:
            raise SpecError(
                f"{self.name}: renumber=true needs a fixed number of tokens per step; give a number or a "
                f"fraction of the context as budget instead of mass={self.budget.mass}"
            )
        if (self.place, self.kv_dtype) != ("device", "auto"):
            raise SpecError(
                f"{self.name}: renumber=true is supported only with place=device, kv_dtype=auto, not "
                f"place={self.place}, kv_dtype={self.kv_dtype}; leave out renumber or give these"
            )
