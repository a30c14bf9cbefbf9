"""ShadowKV: low-rank keys, landmarks of chunks, outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import ALIKE, ON_DEVICE, Differs, Facts
from keyhole.selection import LandmarkSelector, Selector
from keyhole.storage import LowRankStorage, Storage, make_rows
from keyhole.storage.basis import default_rank
from keyhole.storage.chunks import default_chunk


@dataclass(frozen=True)
class ShadowKV(RetrievalMethod):
    """Sun et al., "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference", ICML 2025.

    Keys are kept as coefficients in a basis that is fitted on the prompt, before their rotation and for all
    heads together, so even a full budget is dense attention only up to what the rank leaves out. `place`,
    `block_cache` and `block_eviction` are about the values; low-rank keys stay on the device.
    """

    name: ClassVar[str] = "shadowkv"
    paper: ClassVar[str] = "ShadowKV, arXiv 2410.21465"
    summary: ClassVar[str] = "low-rank keys, rebuilt for the chunks whose mean key ranks best"
    facts: ClassVar[Facts] = Facts(
        stored="Values as they are. Keys behind the window as `rank` numbers for all KV heads together. "
        "Sums of the keys of each chunk, as 32-bit floats. Once for each KV head: the basis `4 * D * (rank "
        "+ 1)`, and exact keys of sinks and outliers, `(sinks + outliers * chunk) * D * e` at most; after "
        "a step also the keys it rebuilt, `R * D * e` at most. All on the device, but for the values with "
        "place=host or place=disk.",
        select="Products with one landmark for each chunk, and a ranking of N / chunk chunks. Keys read "
        "are rebuilt, but for those that the step before had rebuilt: `rank * D` products each.",
        best_for="Memory that is short: keys take a fraction of their bytes. Neighbouring tokens that "
        "matter together, as passages do.",
        weak_at="Keys that left the window are never exact again, so even a full budget is not dense "
        "attention. A single token in a chunk of others is diluted. Few KV heads gain little: `rank` is "
        "shared by fewer, and landmarks, basis and rebuilt keys are held beside. "
        "The basis is fitted in the first step after a prompt, by eigenvectors of a "
        "matrix of Hkv * D rows. Models whose rotation depends on the length are refused.",
        letters="rank is `rank`, or where that is None Hkv * D / 3, but at most 160. chunk is `chunk`, or "
        "where that is None D / 16, but 4 to 8.",
        kept="Dv * e + rank * e / Hkv",
        index="4 * D / chunk",
        scan="4 * D * N / chunk",
        row="Dv * e + rank * e",
        products="G * D * N / chunk",
        differs=(
            Differs("budget", "2048 tokens, outliers in addition", ALIKE),
            Differs(
                "sinks", "0, the first chunk being an outlier", "sinks are read without having to stand out"
            ),
            Differs("place", "host", ON_DEVICE),
            Differs(
                "rank",
                "160",
                "the same for 8 heads of 128; few heads would hold more than dense",
            ),
            Differs(
                "chunk",
                "8",
                "the same for heads of 128; at 64, 4 reads more of the attention",
            ),
        ),
    )

    window: int = 32
    rank: int | None = options.integer(
        None,
        ge=1,
        optional=True,
        help="Numbers that a key of all heads together is kept as. None takes 160, but at most a third of "
        "those that it has in all heads: more would not save memory.",
    )
    chunk: int | None = options.integer(
        None,
        ge=1,
        optional=True,
        unit="tokens",
        help="Tokens that are ranked by one landmark, the mean of their keys, and read together. None takes "
        "a sixteenth of the head size, 4 to 8.",
    )
    outliers: int = options.integer(
        48,
        ge=0,
        unit="chunks",
        help="Chunks of the prompt, for each KV head, that their landmark represents worst: their keys stay "
        "as they are, and they are read before others, within a quarter of the budget.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kv_dtype != "auto":
            raise SpecError(
                f"{self.name}: kv_dtype={self.kv_dtype} goes with other methods; here keys are kept as "
                "`rank` numbers for all heads together, so give a smaller rank to make them smaller"
            )

    def letters(self, head_dim: int, kv_heads: int) -> dict[str, float]:
        return {
            "rank": self.rank or default_rank(kv_heads, head_dim),
            "chunk": self.chunk or default_chunk(head_dim),
        }

    @property
    def needs_positions(self) -> bool:
        return True

    def storage(self, info: ModelInfo) -> list[Storage]:
        return [
            LowRankStorage(
                info.rope(place),
                rank=self.rank,
                chunk=self.chunk,
                outliers=self.outliers,
                values=make_rows(
                    self.place,
                    info.share(int(self.block_cache)),
                    self.block_eviction,
                    info.device,
                    self.window,
                ),
            )
            for place in info.layers
        ]

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [LandmarkSelector(self.chunk, self.outliers) for _ in info.layers]
