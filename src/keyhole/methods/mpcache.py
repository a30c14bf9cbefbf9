"""MPCache, its algorithm in the clear: drop what nothing looks at, read clusters of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import ALIKE, Differs, Facts
from keyhole.retention import BestTokens, Equal, EvictionPolicy, NewestShare, Retention, share
from keyhole.selection import ClusterSelector, FollowingClusters, Selector

_EVERYTHING = Budget(fraction=1.0)
_ALONE = 2  # the first layers, which attend unlike each other
_TELLS = "would make counts depend on the text"


@dataclass(frozen=True)
class MPCache(RetrievalMethod):
    """Zeng et al., "MPCache: MPC-Friendly KV Cache Eviction for Efficient Private LLM Inference", NeurIPS
    2025.

    When a prompt is complete, tokens that its newest fifth hardly attends to are dropped for good; generated
    tokens stay. A step reads clusters of what is left. How many tokens are kept and read follows from lengths
    alone, so that a secure computation could show it to all.
    """

    name: ClassVar[str] = "mpcache"
    paper: ClassVar[str] = "MPCache, arXiv 2501.06807"
    summary: ClassVar[str] = "drops what the prompt's end ignores, reads the best clusters of the rest"
    facts: ClassVar[Facts] = Facts(
        stored="The keys and values that were kept, and their positions. A point for each cluster of both "
        "levels, in the type of the keys, in the first layer of each pair. Until the prompt is complete, the "
        "queries of its newest fifth.",
        select="Products of the group's summed query with the point of each cluster, and a ranking of N / "
        "coarse clusters and of N / fine. Nothing in the second layer of a pair.",
        best_for="Secure computation, where comparisons and gathers cost most: few of both, and counts that "
        "tell nothing. Elsewhere, a cheap index over a cache that is small already.",
        weak_at="A later question may need what was dropped. A cluster of unlike keys is judged by a point "
        "that none of them is near. Paired layers share one list.",
        kept="(D + Dv) * e + 4",
        index="D * e / coarse + D * e / fine",
        scan="D * e * N / coarse + D * e * N / fine",
        products="D * N / coarse + D * N / fine",
        differs=(
            Differs("budget", "0.2 of what is kept", ALIKE),
            Differs("sinks", "the first cluster", ALIKE),
            Differs("window", "what fills no cluster yet", ALIKE),
            Differs("keep", "by a threshold for each task in the code", "counts are to follow from lengths"),
            Differs("share", "clusters only, by layers that keep different tokens", "a list names tokens"),
        ),
    )

    budget: Budget = options.budget(
        Budget(fraction=0.1),
        mass=False,
        refusal=_TELLS,
        unit="tokens",
        help="Tokens read beside the always-read ones.",
    )
    keep: Budget = options.budget(
        Budget(fraction=0.4),
        mass=False,
        refusal=_TELLS,
        unit="tokens",
        help="Tokens kept when a prompt is complete, sinks and window among them: a number, or a fraction of "
        "the context. 1.0 keeps everything, so that another stage may drop tokens.",
    )
    per_head: bool = options.flag(
        False, help="Each KV head keeps tokens of its own; else all heads of a layer keep the same."
    )
    share: bool = options.flag(
        True,
        help="Layers from the third on keep and read what the layer before them does, in pairs; else each "
        "its own.",
    )
    fine: int = options.integer(16, ge=1, unit="tokens", help="Tokens of a cluster that is read.")
    coarse: int = options.integer(
        32,
        ge=1,
        unit="tokens",
        help="Tokens of a cluster by which fine ones are passed over, a multiple of `fine`.",
    )
    survivors: float = options.number(
        0.5,
        ge=0,
        le=1,
        help="Share of the coarse clusters whose fine ones are ranked; more if the budget asks for it.",
    )
    alpha: float = options.number(
        0.6,
        ge=0,
        le=1,
        help="Share of the greatest number in a channel, against the least, in what represents a cluster.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coarse % self.fine:
            raise SpecError(
                f"{self.name}: coarse={self.coarse} is not a multiple of fine={self.fine}; give at least "
                f"{self.fine}, a multiple of it"
            )

    @property
    def needs_positions(self) -> bool:
        return self.share

    def retention(self, info: ModelInfo) -> list[Retention] | None:
        if self.keep == _EVERYTHING:
            return None
        policy = EvictionPolicy(self.keep, Equal(), self.sinks, self.window, every=0, whole_prompt=True)
        own = [Retention(NewestShare(per_head=self.per_head), BestTokens(), policy) for _ in info.layers]
        return share(own, self._leads(len(info)))

    def selectors(self, info: ModelInfo) -> list[Selector]:
        selectors: list[Selector] = []
        leader = None
        for leads in self._leads(len(info)):
            if leads or leader is None:
                leader = ClusterSelector(self.fine, self.coarse, self.survivors, self.alpha)
                selectors.append(leader)
            else:
                selectors.append(FollowingClusters(leader))
        return selectors

    def _leads(self, layers: int) -> list[bool]:
        """Which of so many layers choose for themselves."""
        return [not self.share or layer < _ALONE or layer % 2 == 0 for layer in range(layers)]
