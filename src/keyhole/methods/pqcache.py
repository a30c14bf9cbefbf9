"""PQCache: product quantisation of keys, as maximum-inner-product search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.errors import SpecError
from keyhole.methods.base import RetrievalMethod, check_range
from keyhole.selection import ProductSelector, Selector
from keyhole.setting import Setting


@dataclass(frozen=True)
class PQCache(RetrievalMethod):
    """Zhang et al., "PQCache: Product Quantization-based KVCache for Long Context LLM Inference", 2025.

    The defaults are a preset of ours: 4-bit codes, which scan fastest, along learnt axes.
    The paper: `pqcache(subspaces=2, bits=6, rotate=false)`, and 4 by 8 at 128K tokens.

    Attributes:
        subspaces: parts a key is cut into; must divide the head size. None takes one bit a channel, at least
            64 bits a key, with codes of 4 bits.
        bits: bits of each part's code.
        rotate: quantise along learnt axes (optimised product quantisation) in place of the channels.
        iterations: Lloyd iterations.
        sample: keys of each head that the codebooks are fitted on; all keys are then encoded.
    """

    name: ClassVar[str] = "pqcache"
    paper: ClassVar[str] = "PQCache, arXiv 2407.12820"
    summary: ClassVar[str] = "product-quantised keys rank all tokens, the best are read exactly"

    sinks: int = 32
    subspaces: int | None = None
    bits: int = 4
    rotate: bool = True
    iterations: int = 10
    sample: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subspaces is not None:
            check_range(self.name, "subspaces", self.subspaces, 1)
        check_range(self.name, "bits", self.bits, 1, 8)
        check_range(self.name, "iterations", self.iterations, 1, 300)
        check_range(self.name, "sample", self.sample, 2**self.bits)
        if not isinstance(self.rotate, bool):
            raise SpecError(f"{self.name}: rotate={self.rotate!r} is neither true nor false")

    def selectors(self, setting: Setting) -> list[Selector]:
        return [
            ProductSelector(
                subspaces=self.subspaces,
                bits=self.bits,
                rotate=self.rotate,
                iterations=self.iterations,
                sample=self.sample,
            )
            for _ in setting.layers
        ]
