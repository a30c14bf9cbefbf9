"""PQCache: product quantisation of keys, as maximum-inner-product search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import ALIKE, FOLLOWS, ON_DEVICE, Differs, Facts
from keyhole.selection import ProductSelector, Selector
from keyhole.selection.product import default_subspaces


@dataclass(frozen=True)
class PQCache(RetrievalMethod):
    """Zhang et al., "PQCache: Product Quantization-based KVCache for Long Context LLM Inference", 2025.

    The defaults are a preset of ours: 4-bit codes, which scan fastest, along learnt axes.
    The paper: `pqcache(subspaces=2, bits=6, rotate=false)`, and 4 by 8 at 128K tokens.
    """

    name: ClassVar[str] = "pqcache"
    paper: ClassVar[str] = "PQCache, arXiv 2407.12820"
    summary: ClassVar[str] = "product-quantised keys rank all tokens, the best are read exactly"
    facts: ClassVar[Facts] = Facts(
        stored="A code of each key, and for each KV head once codebooks `4 * C * D`, a rotation and the "
        "second moment of what codes miss, `4 * D * D` each; on the device, as 32-bit floats.",
        select="Adds up M entries of a table for each token and query head, `G * M * N` additions of "
        "small integers, and ranks N tokens.",
        best_for="Long prompts, small budgets, single tokens far apart: each token has a rank of its own. "
        "Mass budgets: its estimates allow for what codes miss.",
        weak_at="The first step after a prompt waits for k-means. What is held once outweighs the codes "
        "of short contexts. Text unlike the prompt is met badly until the index notices and is fitted "
        "anew.",
        letters="M is `subspaces`, or where that is None the first divisor of D from D / 4 on, but at "
        "least 16 and at most D / 2. C is `2**bits`.",
        index="ceil(M / 2) if bits == 4 else M",
        scan="N * (ceil(M / 2) if bits == 4 else M) + 4 * (C * D + (1 + rotate) * D * D)",
        products="G * (C * D + (1 + rotate) * D * D)",
        differs=(
            Differs("budget", "0.1 or 0.2 of the prompt, half of it the window", FOLLOWS),
            Differs("window", "0.05 or 0.1 of the prompt", ALIKE),
            Differs("subspaces", "2; 4 at 128K tokens", "more of them, of 4 bits, are scanned fastest"),
            Differs("bits", "6; 8 at 128K tokens", "tables of 16 entries are looked up by byte shuffles"),
            Differs("rotate", "false", "at equal bytes more of the attention mass is read (docs/LOG.md)"),
            Differs(
                "iterations",
                "3 to 300, as many as hide behind the prompt",
                "what is selected is not to depend on how fast a machine is",
            ),
            Differs("sample", "all keys", "fitting costs the same at every length"),
            Differs("place", "host, with 4,096 tokens of each layer resident", ON_DEVICE),
        ),
    )

    sinks: int = 32
    subspaces: int | None = options.integer(
        None,
        ge=1,
        optional=True,
        help="Parts a key is cut into; must divide the head size. None takes one bit a channel, at least 64 "
        "bits a key, with codes of 4 bits.",
    )
    bits: int = options.integer(4, ge=1, le=8, unit="bits", help="Bits of each part's code.")
    rotate: bool = options.flag(
        True, help="Quantise along learnt axes (optimised product quantisation) in place of the channels."
    )
    iterations: int = options.integer(10, ge=1, le=300, help="Lloyd iterations.")
    sample: int = options.integer(
        8192,
        ge=2,
        unit="tokens",
        help="Keys of each head that the codebooks are fitted on, at least `2**bits`; all keys are then "
        "encoded.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample < 2**self.bits:
            raise SpecError(
                f"{self.name}: sample={self.sample} is out of range; give at least 2**bits, {2**self.bits}"
            )

    def letters(self, head_dim: int, kv_heads: int) -> dict[str, float]:  # noqa: ARG002
        return {"M": self.subspaces or default_subspaces(head_dim), "C": 2**self.bits}

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [
            ProductSelector(
                subspaces=self.subspaces,
                bits=self.bits,
                rotate=self.rotate,
                iterations=self.iterations,
                sample=self.sample,
            )
            for _ in info.layers
        ]
