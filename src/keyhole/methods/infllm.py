"""InfLLM: blocks of the context, ranked by their representative tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import ALIKE, FOLLOWS, ON_DEVICE, Differs, Facts
from keyhole.selection import RepresentativeSelector, Selector


@dataclass(frozen=True)
class InfLLM(RetrievalMethod):
    """Xiao et al., "InfLLM: Training-Free Long-Context Extrapolation for LLMs with an Efficient Context
    Memory", NeurIPS 2024.

    A token's representative score is the mean logit it receives from the `window - 1` queries after it,
    summed over the query heads of a group; the best tokens of a block represent it. A step reads the blocks
    with the largest summed logits, the same ones for all heads of a layer. Prompts are computed densely and
    positions are unchanged; the paper also computes prompts by blocks, and places all blocks at one distance.
    """

    name: ClassVar[str] = "infllm"
    paper: ClassVar[str] = "InfLLM, arXiv 2402.04617"
    summary: ClassVar[str] = "reads the blocks whose representative tokens have the largest logits"
    facts: ClassVar[Facts] = Facts(
        stored="Keys and scores of each block's representatives, in the dtype of the keys, on the device; 8 "
        "bytes per token of an incomplete block.",
        select="Dot products with the representatives of each block, and a ranking of N / block blocks per "
        "layer.",
        best_for="Passages that matter as a whole. A small index, made of exact keys.",
        weak_at="A token is found only through the representatives of its block. Where the following queries "
        "were not observed (a cache that was filled before), the first tokens of a block represent it.",
        index="(D + 1) * e * representatives / block",
        scan="(D + 1) * e * representatives * N / block",
        products="G * D * representatives * N / block",
        differs=(
            Differs("budget", "16 blocks", FOLLOWS),
            Differs("sinks", "128", ALIKE),
            Differs("window", "4096", ALIKE),
            Differs("place", "host, with an LRU cache of blocks", ON_DEVICE),
        ),
    )

    block: int = options.integer(128, ge=1, unit="tokens", help="Tokens per block.")
    representatives: int = options.integer(
        4, ge=1, unit="tokens", help="Representative tokens per block, at most `block`."
    )
    per_head: bool = options.flag(
        False, help="Select blocks per KV head instead of one list for all heads of a layer."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.representatives > self.block:
            raise SpecError(
                f"{self.name}: representatives={self.representatives} is out of range; give at most block, "
                f"{self.block}"
            )

    @property
    def needs_positions(self) -> bool:
        return True

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [
            RepresentativeSelector(self.block, self.representatives, self.window, per_head=self.per_head)
            for _ in info.layers
        ]
