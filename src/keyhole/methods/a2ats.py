"""A2ATS: windowed RoPE and query-aware vector quantisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import ON_DEVICE, Differs, Facts
from keyhole.selection import CodewordSelector, Selector
from keyhole.selection.codewords import UNIONS
from keyhole.selection.quantisers.codebook import Codebook
from keyhole.selection.quantisers.codefile import read_codebooks

_MOST = 2**15  # codes are 16-bit integers


@dataclass(frozen=True)
class A2ATS(RetrievalMethod):
    """He et al., "A2ATS: Retrieval-Based KV Cache Reduction via Windowed Rotary Position Embedding and
    Query-Aware Vector Quantization", Findings of ACL 2025.

    The paper gives each query head a budget of its own (0.03) and reads the union. Here a budget is what a KV
    head reads, so that methods can be compared; the union is cut to it.
    """

    name: ClassVar[str] = "a2ats"
    paper: ClassVar[str] = "A2ATS, arXiv 2502.12665"
    summary: ClassVar[str] = "a codeword for each key, blind to positions, ranks all tokens"
    facts: ClassVar[Facts] = Facts(
        stored="The number of a codeword for each key, 16 bits, on the device. A codebook `4 * C * D` and "
        "its metric and the inverse `4 * D * D` each, for each KV head, as 32-bit floats: one for all "
        "requests where it was calibrated, else one for each batch row.",
        select="Products with C codewords, a ranking of C codewords, and for each of N tokens a look-up "
        "of its code.",
        best_for="Very long contexts with a codebook calibrated for the model: the smallest index here, "
        "nothing to fit while a prompt waits, codewords ranked in place of tokens.",
        weak_at="Tokens of a codeword cannot be told apart. Heads that attend by distance, beyond the "
        "window, are ranked blindly. Without a codebook the first step after a prompt waits for k-means, "
        "and again whenever the context has doubled. Models whose rotation depends on the length are "
        "refused.",
        letters="C are the codewords: of the codebook, or `codewords`, but at most one for 8 keys fitted on.",
        index="2",
        scan="2 * N + 4 * (C * D + D * D)",
        products="G * (C * D + D * D)",
        differs=(
            Differs(
                "budget", "0.03 for each query head, united over a group", "a budget is what a KV head reads"
            ),
            Differs("union", "turns", "the union is cut to the budget, by what is attended to most"),
            Differs("codebook", "always one", "works without; `keyhole calibrate a2ats` makes one"),
            Differs("iterations", "at most 300", "these are spent on each prompt; calibration has its own"),
            Differs("sample", "-", "these are spent on each prompt, too"),
            Differs("place", "host, attended to on the CPU", ON_DEVICE),
        ),
    )

    sinks: int = 8
    codebook: str | None = options.directory(
        help="Written by `keyhole calibrate a2ats` for the model. None fits codewords on each prompt's own "
        "keys, all directions of queries taken alike: needs no calibration, but time."
    )
    distance: int = options.integer(
        2048,
        ge=0,
        unit="tokens",
        help="The constant relative position b at which what lies behind the window is ranked. It must be "
        "within the context the model was trained at, at least the window, and is the one the codebook was "
        "made for.",
    )
    union: str = options.choice(
        "share",
        UNIONS,
        help='"share" reads the codewords of largest share of attention, a mean over the query heads of a '
        'group; "turns" lets the heads name their next best in turns, the paper\'s union of their best.',
    )
    codewords: int = options.integer(
        4096, ge=1, le=_MOST, help="Without a codebook, at most so many for each head, and one for 8 keys."
    )
    iterations: int = options.integer(10, ge=1, le=300, help="Without a codebook, Lloyd iterations.")
    sample: int = options.integer(
        8192,
        ge=1,
        unit="tokens",
        help="Without a codebook, keys of each head that codewords are fitted on; all keys are then encoded.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance < self.window:
            raise SpecError(
                f"{self.name}: distance={self.distance} is out of range; give at least the window, "
                f"{self.window}"
            )

    @property
    def needs_positions(self) -> bool:
        return True

    def letters(self, head_dim: int, kv_heads: int) -> dict[str, float]:  # noqa: ARG002
        return {"C": self.codewords if self.codebook else min(self.codewords, max(1, self.sample // 8))}

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [
            CodewordSelector(
                info.rope(place),
                distance=self.distance,
                union=self.union,
                book=book,
                codewords=self.codewords,
                iterations=self.iterations,
                sample=self.sample,
            )
            for place, book in zip(info.layers, self._books(info), strict=True)
        ]

    def _books(self, info: ModelInfo) -> list[Codebook | None]:
        if self.codebook is None or not info.layers:
            return [None] * len(info)
        return read_codebooks(self.codebook, info, self.distance)
