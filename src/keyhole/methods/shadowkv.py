"""ShadowKV: low-rank keys, chunk landmarks, outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

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

    Keys before RoPE are stored as coefficients in a basis that is fitted to the prompt, jointly for all
    heads, so even a full budget is only an approximation of dense attention. `place`, `block_cache` and
    `block_eviction` apply to the values; low-rank keys stay on the device.
    """

    name: ClassVar[str] = "shadowkv"
    paper: ClassVar[str] = "ShadowKV, arXiv 2410.21465"
    summary: ClassVar[str] = "low-rank keys, reconstructed for the chunks whose mean key ranks best"
    facts: ClassVar[Facts] = Facts(
        stored="Values unchanged. Keys before the window as `rank` numbers for all KV heads together. Sums "
        "of the keys of each chunk, in bfloat16. Per KV head: the basis (`4 * D * (rank + 1)`), exact "
        "keys of sinks and outliers (at most `(sinks + outliers * chunk) * D * e`) and the keys "
        "reconstructed by the last step (at most `R * D * e`). All on the device, except values with "
        "place=host or place=disk.",
        select="Dot products with one landmark per chunk, and a ranking of N / chunk chunks. Keys that are "
        "read are reconstructed unless the previous step had them: `rank * D` products each.",
        best_for="Limited memory: keys take a fraction of their size. Neighbouring tokens that matter "
        "together, such as passages.",
        weak_at="Keys before the window are never exact, so even a full budget is not dense attention. A "
        "single important token is diluted by its chunk. Models with few KV heads gain little, since `rank` "
        "is shared by fewer heads and landmarks, basis and reconstructed keys are extra. The basis is "
        "fitted in the first step after a prompt (eigenvectors of a matrix of Hkv * D rows). Models whose "
        "rotary embedding depends on the sequence length are refused.",
        letters="`rank` is by default Hkv * D / 2, at most 160; `chunk` is by default D / 16, "
        "limited to 4 to 8.",
        kept="Dv * e + rank * e / Hkv",
        index="2 * D / chunk",
        scan="2 * D * N / chunk",
        row="Dv * e + rank * e",
        products="G * D * N / chunk",
        differs=(
            Differs("budget", "2048 tokens, plus outliers", ALIKE),
            Differs("sinks", "0, the first chunk being an outlier", "sinks are always read"),
            Differs("place", "host", ON_DEVICE),
            Differs(
                "rank",
                "160",
                "the same for 8 heads of 128; with few heads it would hold more than dense",
            ),
            Differs(
                "chunk",
                "8",
                "the same for heads of 128; for heads of 64, chunks of 4 read more attention mass",
            ),
        ),
    )

    window: int = 32
    rank: int | None = options.integer(
        None,
        ge=1,
        optional=True,
        help="Rank of the keys of all heads together. None takes 160, at most half of the total key size "
        "(a larger rank saves no memory).",
    )
    chunk: int | None = options.integer(
        None,
        ge=1,
        optional=True,
        unit="tokens",
        help="Tokens per chunk, which is ranked by its landmark (the mean of its keys) and read as a whole. "
        "None takes a sixteenth of the head size, 4 to 8.",
    )
    outliers: int = options.integer(
        48,
        ge=0,
        unit="chunks",
        help="Prompt chunks per KV head that are worst represented by their landmark: their keys stay "
        "exact, and they are read first, within a quarter of the budget.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resident != "blocks":
            raise SpecError(
                f"{self.name}: resident={self.resident} is not supported, because chunks of values are read; "
                "leave it out"
            )
        if self.kv_dtype != "auto":
            raise SpecError(
                f"{self.name}: kv_dtype={self.kv_dtype} is not supported, because keys are stored at low "
                "rank; give a smaller rank to save more memory, or use another method"
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
        return [LandmarkSelector(self.chunk, self.outliers, torch.bfloat16) for _ in info.layers]
