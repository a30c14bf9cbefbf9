"""InfLLM-V2: trained block-sparse attention, blocks ranked by compressed keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import Facts
from keyhole.selection import CompressedSelector, Selector

BY_LENGTH = "cannot be guaranteed, because blocks are chosen by their number, as in training"


@dataclass(frozen=True)
class InfLLMV2(RetrievalMethod):
    """Zhao et al., "InfLLM-V2: Dense-Sparse Switchable Attention for Seamless Short-to-Long Adaptation",
    2025.

    The defaults are those of the released models: of 64 blocks of 64 tokens the first one, the newest 17, of
    which the window cuts through the oldest, and 46 others. Blocks are read whole, so that a step may read
    less than the budget, and begin at multiples of their size. Prompts are computed densely, which the paper
    does for short ones only, and the sum of the softmax over windows is exact, not that of longer windows.
    The method works with any model; it is made for models that were trained with it, by
    `keyhole train --selection infllm_v2`.
    """

    name: ClassVar[str] = "infllm_v2"
    paper: ClassVar[str] = "InfLLM-V2, arXiv 2509.24663"
    summary: ClassVar[str] = "reads the blocks whose windows of averaged keys get most attention, as trained"
    facts: ClassVar[Facts] = Facts(
        stored="The mean key of each `stride` tokens, in the dtype of the keys, on the device; a window is "
        "two of them.",
        select="Dot products with N / stride mean keys, a softmax over windows for each query head, the "
        "greatest of the windows that touch a block, and a ranking of N / block blocks.",
        best_for="Models that were trained with it. Long runs of tokens are read, and a small index.",
        weak_at="A single important token is diluted by its window of 2 * stride tokens, unless the model "
        "was trained with that. Budgets of few blocks: the block that the window cuts through takes one.",
        index="D * e / stride",
        scan="D * e * N / stride",
        products="G * D * N / stride",
    )

    budget: Budget = options.budget(
        Budget(tokens=47 * 64),
        mass=False,
        refusal=BY_LENGTH,
        unit="tokens",
        help="Tokens read per step, in addition to sinks and window, in whole blocks.",
    )
    sinks: int = 64
    window: int = 1024
    block: int = options.integer(64, ge=1, unit="tokens", help="Tokens per block, a multiple of `stride`.")
    stride: int = options.integer(
        16,
        ge=1,
        unit="tokens",
        help="Tokens from one window to the next; the keys of a window, twice as long, are averaged.",
    )
    resident: str = "slots"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block % self.stride:
            raise SpecError(
                f"{self.name}: block={self.block} is not a multiple of stride={self.stride}; give one that is"
            )

    @property
    def needs_positions(self) -> bool:
        return True

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [CompressedSelector(self.block, self.stride, self.sinks, self.window) for _ in info.layers]
