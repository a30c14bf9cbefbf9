"""TokenSelect: a soft vote of all heads elects the tokens a layer reads."""

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

    The paper: `tokenselect(budget=2048, sinks=128, window=512, distance=512, renumber=true,
    scaled_vote=false, sparse_prefill=true)`. It renumbers and scores from one distance because its contexts
    exceed the range of its models; where a model handles the length, true positions are what it has learnt.
    """

    name: ClassVar[str] = "tokenselect"
    paper: ClassVar[str] = "TokenSelect, arXiv 2411.02886"
    summary: ClassVar[str] = "exact logits, one soft vote of each query head, the same tokens for all heads"
    facts: ClassVar[Facts] = Facts(
        stored="No index: the keys themselves are scored. With `reuse`, the last query and what it elected. "
        "With `distance`, a copy of the keys before RoPE, `D * e` for each token.",
        select="Exact logits of every key, a vote of each query head, and a ranking of N tokens for the "
        "layer; nothing in steps that `reuse` answers.",
        best_for="One list of tokens for all heads of a layer, as paged attention wants it. Prompts that "
        "are to be computed sparsely: the only method here that does.",
        weak_at="Reads every key in every step, so at D = Dv it reads no less than half of what dense "
        "does. Heads that need different tokens share one list. With `reuse`, what left the window since "
        "the last election is not read.",
        scan="D * e * N",
        products="G * N * (D + 2)",
        differs=(
            Differs("budget", "2048", ALIKE),
            Differs("sinks", "128", ALIKE),
            Differs("window", "512", ALIKE),
            Differs("scaled_vote", "false", "votes are the attention paid, not all for the best few tokens"),
            Differs("reuse", "0.9; off in the released code", "elections go stale, see what it is bad at"),
            Differs("sparse_prefill", "true", "prompts are computed exactly unless that is asked for"),
            Differs("renumber", "true", "a model that handles the length has learnt true positions"),
            Differs("distance", "512, the window", "as that, and keys are scored where they lie"),
        ),
    )

    per_head: bool = options.flag(
        False, help="Each KV head reads tokens of its own; else a layer reads one list."
    )
    scaled_vote: bool = options.flag(
        True, help="Votes are the softmax of attention; else of its logits before they are scaled down."
    )
    reuse: float | None = options.number(
        None,
        ge=-1,
        le=1,
        optional=True,
        help="Cosine of queries above which the last elected tokens are read again; None elects in each "
        "step.",
    )
    sparse_prefill: bool = options.flag(
        False, help="Elect for prompts too, once for each chunk of queries, within the same budget."
    )
    chunk: int = options.integer(
        512, ge=1, unit="tokens", help="Queries of such a chunk; the window is in addition."
    )
    renumber: bool = options.flag(
        False,
        help="Move what is read to positions without gaps, up to the newest token's, for contexts beyond the "
        "model's range. Prompts need `sparse_prefill` for that, too. Votes are not affected.",
    )
    distance: int | None = options.integer(
        None,
        ge=0,
        optional=True,
        unit="tokens",
        help="Score keys before RoPE, as if all lay so many positions back; None scores them where they are. "
        "It must be within the range of the model, and at least the window.",
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
                f"{self.name}: renumber=true needs to know how many tokens are read before they are "
                f"elected; give a number or a share of them as budget, in place of mass={self.budget.mass}"
            )
        if (self.place, self.kv_dtype) != ("device", "auto"):
            raise SpecError(
                f"{self.name}: renumber=true goes with place=device, kv_dtype=auto: what is read is moved "
                f"in each step; place={self.place}, kv_dtype={self.kv_dtype} go without it"
            )
