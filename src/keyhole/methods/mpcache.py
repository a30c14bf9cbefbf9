"""MPCache, without the secure computation: evict what the prompt's end ignores, read clusters of the rest."""

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
_ALONE = 2  # the first layers, whose attention differs too much to be shared
_LOSES = "sentences are lost otherwise; the published value costs fewer comparisons in a secure computation"
_TELLS = "would make the number of tokens depend on the text, which mpcache must not reveal"


@dataclass(frozen=True)
class MPCache(RetrievalMethod):
    """Zeng et al., "MPCache: MPC-Friendly KV Cache Eviction for Efficient Private LLM Inference", NeurIPS
    2025.

    At the end of a prompt, tokens that its newest fifth hardly attends to are evicted; generated tokens stay.
    A step reads clusters of what is left. The number of tokens kept and read depends on lengths only, so a
    secure computation can reveal it.
    """

    name: ClassVar[str] = "mpcache"
    paper: ClassVar[str] = "MPCache, arXiv 2501.06807"
    summary: ClassVar[str] = "evicts what the prompt's end ignores, reads the best clusters of the rest"
    facts: ClassVar[Facts] = Facts(
        stored="Kept keys and values, and their positions. A representative vector per fine cluster and, "
        "with `survivors` below 1, per coarse cluster, in the dtype of the keys; with `share`, in the first "
        "layer of each pair. Until the prompt is complete, the queries of its newest fifth.",
        select="Dot products of the group's summed query with each cluster's representative, and a ranking "
        "of N / fine clusters; with `survivors` below 1, one of N / coarse before it. With `share`, none in "
        "the second layer of a pair.",
        best_for="Secure computation, where comparisons and gathers are expensive: few of both, and counts "
        "that do not depend on the text. Otherwise, a cheap index over an already small cache.",
        weak_at="Dropped tokens are lost to later questions. Clusters of dissimilar keys are poorly "
        "represented.",
        kept="(D + Dv) * e + 4",
        index="D * e / fine + (survivors < 1) * D * e / coarse",
        scan="D * e * N / fine + (survivors < 1) * D * e * N / coarse",
        products="D * N / fine + (survivors < 1) * D * N / coarse",
        differs=(
            Differs("budget", "0.2 of what is kept", ALIKE),
            Differs("sinks", "the first cluster", ALIKE),
            Differs("window", "tokens of incomplete clusters", ALIKE),
            Differs("keep", "a threshold per task in the code", "counts must depend on lengths only"),
            Differs("kernel", "1", "the words of an answer are kept along with the one that is looked at"),
            Differs("share", "true; clusters only, of layers that keep different tokens", _LOSES),
            Differs("fine", "16", _LOSES),
            Differs("coarse", "32", _LOSES),
            Differs("survivors", "0.5", _LOSES),
        ),
    )

    budget: Budget = options.budget(
        Budget(fraction=0.1),
        mass=False,
        refusal=_TELLS,
        unit="tokens",
        help="Tokens read per step, in addition to sinks and window.",
    )
    keep: Budget = options.budget(
        Budget(fraction=0.4),
        mass=False,
        refusal=_TELLS,
        unit="tokens",
        help="Tokens kept at the end of a prompt, including sinks and window: a number, or a fraction of the "
        "context. 1.0 keeps everything and leaves eviction to another stage.",
    )
    per_head: bool = options.flag(
        False, help="Evict per KV head instead of the same tokens in all heads of a layer."
    )
    kernel: int = options.integer(
        7,
        ge=1,
        unit="tokens",
        help="Kernel size of the max pooling over the scores by which tokens are evicted, an odd number.",
    )
    share: bool = options.flag(
        False,
        help="From the third layer on, pair layers: the second of a pair keeps and reads what the first "
        "does.",
    )
    fine: int = options.integer(
        8, ge=1, unit="tokens", help="Tokens per fine cluster, the unit that is read."
    )
    coarse: int = options.integer(
        16,
        ge=1,
        unit="tokens",
        help="Tokens per coarse cluster, by which fine ones are pre-selected; clusters are indexed when so "
        "many tokens are there. A multiple of `fine`.",
    )
    survivors: float = options.number(
        1.0,
        ge=0,
        le=1,
        help="Fraction of coarse clusters whose fine clusters are ranked; more if the budget requires it. 1 "
        "ranks all fine clusters, without coarse ones.",
    )
    alpha: float = options.number(
        0.6,
        ge=0,
        le=1,
        help="Weight of the channel-wise maximum, against the minimum, in a cluster's representative.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise SpecError(f"{self.name}: kernel={self.kernel} is even; give an odd number")
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
        own = [Retention(self._scorer(), BestTokens(), policy) for _ in info.layers]
        return share(own, self._leads(len(info)))

    def _scorer(self) -> NewestShare:
        return NewestShare(per_head=self.per_head, kernel=self.kernel, unlifting=self.window)

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
        """Which layers select for themselves."""
        return [not self.share or layer < _ALONE or layer % 2 == 0 for layer in range(layers)]
