"""MagicPIG: attention estimated from a sample of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.budget import Budget
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import ALIKE, FOLLOWS, ON_DEVICE, Differs, Facts
from keyhole.selection import HashSelector, Selector


@dataclass(frozen=True)
class MagicPIG(RetrievalMethod):
    """Chen et al., "MagicPIG: LSH Sampling for Efficient LLM Generation", ICLR 2025.

    Keys about their mean are hashed to buckets of L tables, K random planes each. A token is read if it
    shares the query's bucket in two tables or more, and weighs 1/p for the probability p of that. With
    u = 1 - angle / pi, p = 1 - (1 - u^K)^L - L u^K (1 - u^K)^(L-1). Sinks and window are exact. Published:
    close to full attention on RULER at 2% of its computation (K = 10, L = 150), up to 5 times the throughput
    with tables on the CPU.

    There each query head samples for itself, tables alone decide how much is read, and the code reads layers
    0, 16, 32 and 48 whole. Here the heads of a group sample by one query, the mean of their directions, and
    the budget is the most that is read: tables are looked at one after another until it is full, and p is
    that of those looked at. Which tables these are depends on what was found, so the estimate is unbiased
    where all are looked at. As in the code, 0.0001 is added to p; planes are the same in each process, layer
    and head.
    """

    name: ClassVar[str] = "magicpig"
    paper: ClassVar[str] = "MagicPIG, arXiv 2410.16179"
    summary: ClassVar[str] = "samples tokens by hashing, and weights them for how probable that was"
    facts: ClassVar[Facts] = Facts(
        stored="Per token and KV head a 16-bit bucket in each table; per KV head the mean key, as 32-bit "
        "floats. All on the device; the planes are one set for all layers.",
        select="The buckets of the query (`D * bits * tables` products), compared with those of each of the "
        "N tokens; angles of the tokens that are read.",
        best_for="Answers that many tokens have a small part in: the sample stands for what is not read.",
        weak_at="By far the largest index: with 150 tables 300 bytes per token, more than a key. Keys and "
        "queries lie at wide angles, so few tokens are found; an estimate scatters from step to step.",
        index="2 * tables",
        scan="2 * tables * N + 4 * D",
        products="D * bits * tables",
        differs=(
            Differs("budget", "as many as the tables find", f"{ALIKE}; {FOLLOWS}"),
            Differs("window", "64, and all generated tokens", ALIKE),
            Differs("place", "host, with tables and attention on the CPU", ON_DEVICE),
        ),
    )

    budget: Budget = options.budget(
        Budget(fraction=0.1),
        mass=False,
        refusal="is not known before tokens are sampled",
        unit="tokens",
        help="The most tokens that a step samples, in addition to sinks and window.",
    )
    bits: int = options.integer(10, ge=1, le=15, unit="bits", help="Random planes of a table (K).")
    tables: int = options.integer(150, ge=2, le=1000, help="Hash tables (L).")

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [HashSelector(self.bits, self.tables) for _ in info.layers]
