"""Keys and values in 8 to 2 bits, whatever is kept of them and read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.methods import options, placing
from keyhole.methods.base import Method
from keyhole.methods.facts import Differs, Facts
from keyhole.storage import ROTATIONS, Storage

_BITS = (8, 4, 3, 2)
_ROW = "(D + Dv) * bits / 8 + D / 8 + 8"


@dataclass(frozen=True)
class Quantised(Method):
    """Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", ICML 2024.

    Keys are quantised per channel in groups of 64 tokens, values per token, below 8 bits after a Hadamard
    rotation (QuaRot, arXiv 2404.00456). The first 4 tokens and the newest 64 to 127 stay as they came. It
    answers *place* only: on its own every step reads everything. Combine it with methods that drop or select
    tokens: `snapkv(budget=0.3) + quantised(bits=4)`, `quantised + pqcache`. The paper has 2 bits, groups of
    32 and no rotation.
    """

    name: ClassVar[str] = "quantised"
    paper: ClassVar[str] = "KIVI, arXiv 2402.02750"
    summary: ClassVar[str] = "keys per channel and values per token in 8, 4, 3 or 2 bits"
    facts: ClassVar[Facts] = Facts(
        stored="Codes of keys and values with 32-bit scales and minima; the first 4 tokens and the newest 64 "
        "to 127 unquantised, on the device.",
        select="No selection: R = N, unless another stage selects. A step that reads everything dequantises "
        "one layer at a time.",
        best_for="Limited memory, with any cache method that does not define its own storage.",
        weak_at="A step that reads everything dequantises it, so on its own it saves memory, not time. "
        "Combining it with eviction during generation is refused, since the rest would be requantised each "
        "time.",
        kept=_ROW,
        row=_ROW,
        differs=(
            Differs("bits", "2", "a full budget stays close to dense attention"),
            Differs("rotation", "none", "below 8 bits outliers are spread first, which costs no bytes"),
        ),
    )
    renamed: ClassVar[dict[str, str]] = placing.RENAMED

    bits: int = options.choice(8, _BITS, unit="bits", help="Bits per element, 8, 4, 3 or 2.")
    rotation: str = options.choice(
        "auto",
        ROTATIONS,
        help='What spreads outliers over all channels of a key and value first: a "hadamard" rotation, or '
        '"none". "auto" rotates below 8 bits.',
    )
    place: str = placing.place()
    block_cache: int | str = placing.block_cache()
    block_eviction: str = placing.block_eviction()

    def __post_init__(self) -> None:
        super().__post_init__()
        placing.check_blocks(self)

    def storage(self, info: ModelInfo) -> list[Storage]:
        return placing.storages(self, info, f"int{self.bits}", rotation=self.rotation)
