"""Tail: what a selecting method does not read is estimated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from keyhole.core.errors import SpecError
from keyhole.methods import options
from keyhole.methods.base import Method, RetrievalMethod
from keyhole.methods.facts import Facts
from keyhole.methods.magicpig import MagicPIG
from keyhole.methods.nosa import Nosa
from keyhole.methods.retroinfer import RetroInfer
from keyhole.selection import Selector
from keyhole.selection.tail import Clusters, TailSelector

_DTYPES = {"int8": torch.int8, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Tail(Method):
    """Desai et al., "vAttention: Verified Sparse Attention", arXiv 2510.05688, for its aim: heavy hitters
    exactly, and an estimate of the rest.

    It answers no question itself: `pqcache(budget=0.02) + tail`. What is estimated are clusters of similar
    keys (as in RetroInfer, arXiv 2505.02922), without the tokens that are read.
    """

    name: ClassVar[str] = "tail"
    paper: ClassVar[str] = "vAttention, arXiv 2510.05688, and RetroInfer, arXiv 2505.02922"
    summary: ClassVar[str] = "estimates what another method does not read, by clusters of tokens"
    facts: ClassVar[Facts] = Facts(
        stored="What the other method stores, and per KV head the sum of keys and of values of each cluster, "
        "the cluster of each token, and a factor of queries' second moment (`4 * D * D`). All on the device.",
        select="As the other method, by estimates put right by the mean key of each cluster where the index "
        "has estimates of each token (pqcache).",
        best_for="Small budgets, and answers that many tokens have a small part in, such as counts of words.",
        weak_at="k-means runs in the first step after a prompt. A step reads all clusters, "
        "beside what the other method reads.",
        index="((D + Dv) * {'float32': 4, 'bfloat16': 2, 'int8': 1}[dtype] "
        "+ (12 if dtype == 'int8' else 4)) / tokens + 2",
        products="G * D * N / tokens",
    )

    tokens: int = options.integer(20, ge=1, unit="tokens", help="Tokens per cluster, on average.")
    logits: str = options.choice(
        "auto",
        ("auto", "means"),
        help='Where logits of unread tokens come from: "auto" takes the estimates of the method\'s index '
        "where it has one of each token (pqcache, oracle), and mean keys elsewhere.",
    )
    dtype: str = options.choice(
        "int8", tuple(_DTYPES), help="Precision of the sums of a cluster; int8 has a scale for each sum."
    )
    iterations: int = options.integer(6, ge=1, le=300, help="Lloyd iterations.")

    def around(self, selectors: list[Selector]) -> list[Selector]:
        """Selectors beside which the rest is estimated; layers that are read whole have none."""
        return [selector if selector.reads_all else self._around(selector) for selector in selectors]

    def _around(self, selector: Selector) -> Selector:
        clusters = Clusters(self.tokens, self.iterations, _DTYPES[self.dtype])
        return TailSelector(selector, clusters, by_tokens=self.logits == "auto")


def check_tail(stages: tuple[Method, ...]) -> None:
    """Raise SpecError for a tail without a stage that selects, or with one that it cannot estimate beside."""
    tails = [stage for stage in stages if isinstance(stage, Tail)]
    selecting = [stage for stage in stages if isinstance(stage, RetrievalMethod)]
    if not tails:
        return
    if len(tails) > 1:
        raise SpecError("tail is given twice; keep one of them")
    if not selecting:
        raise SpecError(
            "tail estimates what a selecting method does not read, and the recipe has none; "
            "write pqcache + tail, or another one"
        )
    for stage in selecting:
        if isinstance(stage, Nosa):
            raise SpecError("nosa adds a bias to each logit, which means of keys do not have; leave out tail")
        if isinstance(stage, (RetroInfer, MagicPIG)):
            raise SpecError(f"{stage.name} estimates what it does not read by itself; leave out tail")
        if getattr(stage, "renumber", False):
            raise SpecError(
                f"{stage.name}: renumber=true moves the keys that are read, and tail estimates keys at their "
                "own positions; leave out one of them"
            )
