"""InfLLM: blocks of the context, read where their representative tokens are attended to."""

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

    A token's representative score is the mean logit that the `window - 1` queries after it give it, summed
    over the query heads of a group; the best tokens of a block represent it. A step reads the blocks of
    greatest summed logits, the same ones for all heads of a layer. Prompts are computed densely, and
    positions stay true; the paper computes prompts by blocks as well, and gives all blocks one distance.
    """

    name: ClassVar[str] = "infllm"
    paper: ClassVar[str] = "InfLLM, arXiv 2402.04617"
    summary: ClassVar[str] = "blocks ranked by a few representative tokens, the best blocks are read"
    facts: ClassVar[Facts] = Facts(
        stored="The keys of the representatives of each block and their scores, in the type of the keys, on "
        "the device; 8 bytes for each token whose block is not whole yet.",
        select="Products with the representatives of each block, and a ranking of N / block blocks for the "
        "layer.",
        best_for="Runs of text that matter together. An index that is small and made of true keys.",
        weak_at="A token is only found through the representatives of its block. Tokens whose following "
        "queries were not seen, as those of a cache that was filled before, are represented by the first of "
        "a block.",
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

    block: int = options.integer(128, ge=1, unit="tokens", help="Tokens of a block.")
    representatives: int = options.integer(
        4, ge=1, unit="tokens", help="Tokens that represent a block, at most all of it."
    )
    per_head: bool = options.flag(
        False, help="Each KV head reads blocks of its own; else all heads of a layer read one list."
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
