"""ClusterKV: whole clusters of similar keys, wherever their tokens lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import ALIKE, FOLLOWS, ON_DEVICE, Differs, Facts
from keyhole.selection import CentroidSelector, Selector
from keyhole.selection.quantisers.keyclusters import KeyClusters


@dataclass(frozen=True)
class ClusterKV(RetrievalMethod):
    """Liu et al., "ClusterKV: Manipulating LLM KV Cache in Semantic Space for Recallable Compression", DAC
    2025.

    Keys are clustered by the cosine, without sinks. A step reads the clusters whose mean keys have the
    largest products with the query, and of the last one what the budget allows. Published: hardly any loss
    with 1,024 to 2,048 of 32K tokens, steps up to twice as fast.

    Paper and code select for each query head; here the query heads of a KV head read one list, by their mean
    share of attention. The code has a fixed number of clusters (400, or 200), reads the first two layers
    whole, and where it measures accuracy it reads all generated tokens.

    `clusterkv(tokens=20)` ranks as "Squeezed Attention", arXiv 2411.09688, whose score of a cluster is the
    same share of attention, exp(q c_i) over the sum of N_j exp(q c_j). There one threshold for all heads,
    calibrated on a fixed context, decides how much each reads; here the budget does, or `mass=`. Its second
    level of clusters, which spares products with mean keys, is left out.
    """

    name: ClassVar[str] = "clusterkv"
    paper: ClassVar[str] = "ClusterKV, arXiv 2412.03213"
    summary: ClassVar[str] = "reads the clusters of similar keys whose mean keys have the largest logits"
    facts: ClassVar[Facts] = Facts(
        stored="Per cluster and KV head the sum of its keys in 32-bit floats for 32-bit keys and in bfloat16 "
        "for others, and the number of its tokens; the cluster of each token. All on the device.",
        select="Dot products with the mean key of each cluster, a ranking of N / tokens clusters, and one "
        "look-up for each of the N tokens.",
        best_for="Tokens that matter together and lie apart: a small index that does not depend on pages.",
        weak_at="k-means runs in the first step after a prompt. A token is found only through its cluster, "
        "and costs all of it.",
        index="(D * e + 4) / tokens + 2",
        scan="(D * e + 4) * ceil((N + window - sinks) / tokens) + 2 * N",
        products="G * D * N / tokens",
        differs=(
            Differs("budget", "1,024 to 2,048 tokens", FOLLOWS),
            Differs("window", "generated tokens, until there are 320, then 4 clusters of them", ALIKE),
            Differs("place", "host, with the clusters of the last steps on the device", ON_DEVICE),
        ),
    )

    tokens: int = options.integer(80, ge=1, unit="tokens", help="Tokens per cluster, on average.")
    iterations: int = options.integer(20, ge=1, le=300, help="Lloyd iterations.")

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [
            CentroidSelector(KeyClusters(self.tokens, self.iterations, None, "cosine")) for _ in info.layers
        ]
