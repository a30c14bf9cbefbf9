"""Options of methods that select in prompts too, and renumber what they read, beyond the range of a model."""

from __future__ import annotations

from dataclasses import dataclass

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.core.rope import FixedDistance
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.prefill import ChunkedPrefill, Prefill
from keyhole.selection import Vote
from keyhole.storage import RenumberedStorage, Storage


@dataclass(frozen=True)
class Renumbering(RetrievalMethod):
    """A selecting method whose steps and prompts can be computed at positions within a model's range.

    Source: "TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic
    Token-Level KV Cache Selection", arXiv 2411.02886. How steps select is up to the method.
    """

    sparse_prefill: bool = options.flag(
        False,
        help="Also select in prompts, once per chunk of queries, by a soft vote of all heads and with the "
        "same budget.",
    )
    chunk: int = options.integer(512, ge=1, unit="tokens", help="Queries per chunk of `sparse_prefill`.")
    voters: int = options.integer(
        32,
        ge=0,
        unit="queries",
        help="So many of the newest queries of a chunk vote, and those before them by the means of as many "
        "runs; 0 is one vote by the mean of all.",
    )
    renumber: bool = options.flag(
        False,
        help="Renumber the tokens that are read to consecutive positions, for contexts beyond the model's "
        "range; prompts also need `sparse_prefill`. How tokens are ranked is not affected.",
    )
    distance: int | None = options.integer(
        None,
        ge=0,
        optional=True,
        unit="tokens",
        help="Rank all keys at this constant relative position; None ranks them at their own. At least the "
        "window, and within the model's range.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance is not None and self.distance < self.window:
            raise SpecError(
                f"{self.name}: distance={self.distance} is out of range; give at least the window, "
                f"{self.window}"
            )
        if self.budget.error is not None and self.sparse_prefill:
            raise SpecError(
                f"{self.name}: sparse_prefill=true selects for many queries at once, whose errors are not "
                f"estimated; leave it out, or give another budget than {self.budget}"
            )
        if self.budget.varies and (self.renumber or self.distance is not None):
            option = "renumber=true" if self.renumber else f"distance={self.distance}"
            raise SpecError(
                f"{self.name}: {option} needs a fixed number of tokens per step; give a number or a "
                f"fraction of the context as budget instead of {self.budget}"
            )
        if self.renumber and (self.place, self.kv_dtype) != ("device", "auto"):
            raise SpecError(
                f"{self.name}: renumber=true is supported only with place=device, kv_dtype=auto, not "
                f"place={self.place}, kv_dtype={self.kv_dtype}; leave out renumber or give these"
            )

    @property
    def needs_positions(self) -> bool:
        return self.renumber or self.sparse_prefill

    @property
    def vote(self) -> Vote:
        """How a chunk of a prompt elects what it reads."""
        return Vote(per_head=False, scaled=True)

    def prefill(self, info: ModelInfo) -> list[Prefill] | None:
        if not self.sparse_prefill:
            return None
        return [
            ChunkedPrefill(
                self.vote,
                self.chunk,
                self.budget,
                self.sinks,
                self.window,
                voters=self.voters,
                scoring=self.scoring(info, place),
                renumber=info.rope(place) if self.renumber else None,
            )
            for place in info.layers
        ]

    def storage(self, info: ModelInfo) -> list[Storage] | None:
        if not self.renumber:
            return super().storage(info)
        return [RenumberedStorage(info.rope(place), self.budget) for place in info.layers]

    def scoring(self, info: ModelInfo, place: int) -> FixedDistance | None:
        """At which relative position keys of a layer are ranked; None is their own."""
        return None if self.distance is None else FixedDistance(info.rope(place), self.distance)
