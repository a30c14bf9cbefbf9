"""Keys and values in 8 or 4 bits, whatever is kept of them and read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.methods import options, placing
from keyhole.methods.base import Method
from keyhole.methods.facts import Differs, Facts
from keyhole.storage import Storage

_BITS = (8, 4)
_ROW = "(D + Dv) * bits / 8 + D / 8 + 8"


@dataclass(frozen=True)
class Quantised(Method):
    """Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", ICML 2024.

    Keys have a range for each channel of a group of 64 tokens, values one for each token. It answers *place*
    only: alone every step reads everything, and it goes before methods that drop tokens or select:
    `snapkv(budget=0.3) + quantised(bits=4)`, `quantised + pqcache`. The paper has 2 bits and groups of 32.
    """

    name: ClassVar[str] = "quantised"
    paper: ClassVar[str] = "KIVI, arXiv 2402.02750"
    summary: ClassVar[str] = "keys by channel and values by token in 8 or 4 bits"
    facts: ClassVar[Facts] = Facts(
        stored="Codes of keys and values with 32-bit scales and minima; the newest 64 to 127 tokens as they "
        "are, on the device.",
        select="Nothing is selected: R = N, unless another stage selects. A step that reads everything "
        "unpacks one layer at a time.",
        best_for="Memory that is short, with any method for the cache that has no form of its own.",
        weak_at="A step that reads everything unpacks it, so alone it gains memory, not time. With methods "
        "that drop tokens while generating it would quantise the rest again each time; that is refused.",
        kept=_ROW,
        row=_ROW,
        differs=(Differs("bits", "2", "a full budget is to stay close to dense attention"),),
    )
    renamed: ClassVar[dict[str, str]] = placing.RENAMED

    bits: int = options.choice(8, _BITS, unit="bits", help="Bits of a number, 8 or 4.")
    place: str = placing.place()
    block_cache: int | str = placing.block_cache()
    block_eviction: str = placing.block_eviction()

    def __post_init__(self) -> None:
        super().__post_init__()
        placing.check_blocks(self)

    def storage(self, info: ModelInfo) -> list[Storage]:
        return placing.storages(self, info, f"int{self.bits}")
