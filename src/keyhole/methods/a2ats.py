"""A2ATS: windowed RoPE and query-aware vector quantisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.distances import Distances
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.core.rope import Rope
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

    The paper gives each query head its own budget (0.03) and reads the union. Here the budget is what a KV
    head reads, as for all methods, and the union is cut to it.
    """

    name: ClassVar[str] = "a2ats"
    paper: ClassVar[str] = "A2ATS, arXiv 2502.12665"
    summary: ClassVar[str] = "ranks tokens by one position-independent codeword per key"
    facts: ClassVar[Facts] = Facts(
        stored="A 16-bit codeword index per key, on the device. Per KV head, as 32-bit floats: a codebook "
        "(`4 * C * D`), its metric and the inverse metric (`4 * D * D` each). A calibrated codebook is "
        "shared by all requests; otherwise there is one per batch row.",
        select="Dot products with C codewords for each of `ranges` ranges of distance, a ranking of "
        "`ranges * C` groups, and one code look-up for each of the N tokens.",
        best_for="Very long contexts with a codebook calibrated for the model: the smallest index of all "
        "methods, no fitting at request time, and codewords are ranked instead of tokens.",
        weak_at="Tokens that share a codeword and a range are indistinguishable. Heads that attend by exact "
        "relative position beyond the window are ranked poorly. Without a calibrated codebook, k-means runs "
        "in the first step after a prompt, and again whenever the context has doubled. Models whose rotary "
        "embedding depends on the sequence length are refused.",
        letters="C is the number of codewords: those of the codebook, or `codewords`, limited to one per 8 "
        "keys used for fitting.",
        index="2",
        scan="2 * N + 4 * (C * D + D * D)",
        products="G * ranges * (C * D + D * D)",
        differs=(
            Differs(
                "budget", "0.03 per query head, united over a group", "the budget is what a KV head reads"
            ),
            Differs(
                "ranges", "1", "a token's distance is known: four ranges lose a quarter of what one loses"
            ),
            Differs("union", "turns", "the union is cut to the budget, by attention"),
            Differs(
                "codebook", "always calibrated", "works without one; `keyhole calibrate a2ats` makes one"
            ),
            Differs("iterations", "at most 300", "runs for every prompt; calibration has its own setting"),
            Differs("sample", "-", "fitting runs for every prompt"),
            Differs("place", "host, with attention on the CPU", ON_DEVICE),
        ),
    )

    sinks: int = 8
    codebook: str | None = options.directory(
        help="Directory written by `keyhole calibrate a2ats` for this model. None fits codewords to the "
        "keys and newest queries of each prompt: no calibration is needed, but the first step takes longer."
    )
    distance: int = options.integer(
        2048,
        ge=0,
        unit="tokens",
        help="Constant relative position b at which tokens before the window are ranked. At least the "
        "window, within the model's trained context, and the same as the codebook's. With several `ranges`, "
        "half the length at which the last one ends.",
    )
    ranges: int = options.integer(
        4,
        ge=1,
        le=16,
        help="Ranges of distances before the window, each ranked at the mean of its rotations. 1 is the "
        "paper's: all tokens are ranked at `distance`.",
    )
    union: str = options.choice(
        "share",
        UNIONS,
        help='How the query heads of a group agree on codewords: "share" ranks them by their mean share of '
        'attention; "turns" takes each head\'s next best in turn, the union of the paper.',
    )
    codewords: int = options.integer(
        4096, ge=1, le=_MOST, help="Without a codebook: maximum number per head, limited to one per 8 keys."
    )
    iterations: int = options.integer(10, ge=1, le=300, help="Without a codebook: Lloyd iterations.")
    sample: int = options.integer(
        8192,
        ge=1,
        unit="tokens",
        help="Without a codebook: keys per head that codewords are fitted to; all keys are then encoded.",
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
                self.ranking(info.rope(place)),
                union=self.union,
                book=book,
                codewords=self.codewords,
                iterations=self.iterations,
                sample=self.sample,
            )
            for place, book in zip(info.layers, self._books(info), strict=True)
        ]

    def ranking(self, rope: Rope) -> Distances:
        """The ranges of distances of a layer."""
        return Distances(rope, self.distance, ranges=self.ranges, window=self.window)

    def _books(self, info: ModelInfo) -> list[Codebook | None]:
        if self.codebook is None or not info.layers:
            return [None] * len(info)
        return read_codebooks(self.codebook, info, self.distance)
