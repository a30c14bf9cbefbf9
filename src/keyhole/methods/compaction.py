"""Compaction: what another eviction method keeps stands for what it drops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.facts import EVICTED, Differs, Facts
from keyhole.methods.wrapper import ScoreWrapper
from keyhole.retention import CompactingScorer, Retention, Scorer


@dataclass(frozen=True)
class Compaction(ScoreWrapper):
    """Zweiger et al., "Fast KV Compaction via Attention Matching", 2026.

    Wraps any method that evicts: `compaction + snapkv(budget=0.1)`. The budget stays: part of it goes to
    tokens that represent those the wrapped method drops, and the values of all kept tokens between sinks and
    window are refitted, so that recent queries get from what is kept the output that they got from
    everything. Recent queries are rotated to the next positions first, since it is later tokens that ask.
    """

    name: ClassVar[str] = "compaction"
    paper: ClassVar[str] = "Attention Matching, arXiv 2602.16284"
    summary: ClassVar[str] = "refits the values another method keeps to stand for what it drops"
    facts: ClassVar[Facts] = Facts(
        stored="What the wrapped method stores and, until tokens are evicted, the newest queries "
        "(`G * D * e` each). With methods that evict during generation, those of up to `every` tokens.",
        select="No selection: all kept tokens are read.",
        best_for="Small budgets with any eviction method, and text that is continued: dropped tokens still "
        "contribute to the output.",
        weak_at="Queries unlike recent ones. An eviction costs a pass of `queries * G` queries over all "
        "tokens and, per KV head, a linear system of as many unknowns, or of the kept tokens where they are "
        "fewer. Later evictions start from fitted values, so their errors add up.",
        kept=EVICTED,
        differs=(
            Differs(
                "rows",
                "all, chosen by attention or by orthogonal matching pursuit",
                "the wrapped method decides",
            ),
            Differs(
                "queries",
                "of a second pass over the text, or of generated questions",
                "no second pass; recent queries at the next positions",
            ),
        ),
    )
    around_others: ClassVar[bool] = True
    following: ClassVar[bool] = True

    rows: float = options.number(
        0.75,
        ge=0,
        le=1,
        help="Fraction of the budget between sinks and window for tokens that the wrapped method drops and "
        "recent queries attend to most. 0 keeps what the wrapped method keeps.",
    )
    queries: int = options.integer(
        512, ge=1, unit="tokens", help="Newest queries per query head to which values are fitted."
    )
    future: int = options.integer(
        128, ge=1, unit="tokens", help="Number of positions, after the newest token, to move queries to."
    )
    ridge: float = options.number(
        0.03, ge=0.001, le=100, help="Regularisation of the fit: larger values stay closer to the originals."
    )
    every: int = options.integer(
        64,
        ge=1,
        unit="tokens",
        help="With methods that evict during generation: evict after at least this many generated tokens, "
        "since each eviction is a fit.",
    )

    def wrapped(self, scorer: Scorer, info: ModelInfo, place: int) -> Scorer:
        return CompactingScorer(
            scorer,
            info.rope(place),
            rows=self.rows,
            queries=self.queries,
            future=self.future,
            ridge=self.ridge,
        )

    def wrap(self, retentions: list[Retention], info: ModelInfo) -> None:
        super().wrap(retentions, info)
        for retention in retentions:
            policy = retention.policy
            if policy.every:
                retention.policy = policy._replace(every=max(policy.every, self.every))
