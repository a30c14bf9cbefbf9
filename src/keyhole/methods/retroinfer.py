"""RetroInfer: the best clusters exactly, an estimate of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import ALIKE, FOLLOWS, ON_DEVICE, Differs, Facts
from keyhole.selection import Selector, ZoneSelector
from keyhole.selection.tail import Clusters


@dataclass(frozen=True)
class RetroInfer(RetrievalMethod):
    """Chen et al., "RetroInfer: A Vector Storage Engine for Scalable Long-Context LLM Inference", VLDB 2026.

    Three zones: sinks and window (steady); clusters of similar keys, which are read where their mean keys
    have the largest logits (retrieval); of other clusters, mean keys and mean values with the weight of all
    their tokens (estimation). Segments of 8,192 tokens are clustered apart, by the cosine about their mean
    key. Published: full accuracy at 1.8% read and 23.2% estimated, up to 4.4 times the throughput at 120K
    tokens.

    Paper and code estimate 23.2% of the clusters and take the rest for zero; here all are estimated that are
    not read, and the last one that is read may be read in part. Query heads of a KV head read one list, as
    there.
    """

    name: ClassVar[str] = "retroinfer"
    paper: ClassVar[str] = "RetroInfer, arXiv 2505.02922"
    summary: ClassVar[str] = "reads the best clusters of similar keys, estimates the others by their means"
    facts: ClassVar[Facts] = Facts(
        stored="Per cluster and KV head the sums of its keys and of its values, in 32-bit floats for 32-bit "
        "keys and in bfloat16 for others, and the number of its tokens; the cluster of each token. All on "
        "the device.",
        select="Dot products with the mean key of each cluster, a ranking of N / tokens clusters, and one "
        "look-up for each of the N tokens. The estimate weights the mean values.",
        best_for="Small budgets, and answers that many tokens have a small part in: nothing counts as zero.",
        weak_at="k-means runs in the first step after a prompt, of small clusters. A step reads the sums of "
        "all clusters.",
        index="((D + Dv) * e + 4) / tokens + 2",
        scan="((D + Dv) * e + 4) * ceil((N + window - sinks) / tokens) + 2 * N",
        products="2 * G * D * N / tokens",
        differs=(
            Differs("budget", "0.018", f"{ALIKE}; {FOLLOWS}"),
            Differs("sinks", "4", ALIKE),
            Differs("window", "64, and generated tokens until there are 1,024", ALIKE),
            Differs("place", "host, with a cache of clusters on the device", ON_DEVICE),
        ),
    )

    tokens: int = options.integer(16, ge=1, unit="tokens", help="Tokens per cluster, on average.")
    iterations: int = options.integer(10, ge=1, le=300, help="Lloyd iterations.")

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [ZoneSelector(Clusters(self.tokens, self.iterations, None, "centred")) for _ in info.layers]
