"""Expected Attention: keeps the tokens that future queries are expected to attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.eviction import EvictionMethod
from keyhole.methods.facts import ALIKE, EVICTED, Differs, Facts
from keyhole.retention import ExpectedAttention, Scorer


@dataclass(frozen=True)
class ExpectedAttentionKV(EvictionMethod):
    """Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries
    Distribution", 2025.

    Follows the released code (kvpress) where it differs from the paper: scores use the norm of the value, not
    of its output projection, and the covariance is rotated by the mean rotation. Sinks are excluded from the
    statistics.
    """

    name: ClassVar[str] = "expectedattention"
    paper: ClassVar[str] = "Expected Attention, arXiv 2510.00636"
    summary: ClassVar[str] = "keeps what queries like those of the prompt are expected to attend to"
    facts: ClassVar[Facts] = Facts(
        stored="Kept keys and values, their positions, and per query head the mean and scatter of queries "
        "(`4 * D * (D + 1)`).",
        select="No selection: all kept tokens are read.",
        best_for="Compressing a text before its question is known: scores do not depend on the prompt's end.",
        weak_at="Questions whose queries are distributed differently from those of the text. Scoring "
        "multiplies every key by a matrix (`D * D` products per query head). Dropped tokens are lost to "
        "later questions.",
        kept=EVICTED,
        differs=(
            Differs("window", "0", ALIKE),
            Differs("statistics", "hidden_states", "the same numbers, without needing the query projection"),
        ),
    )

    future: int = options.integer(
        512, ge=1, unit="tokens", help="Number of future positions, after the newest token, to average over."
    )
    covariance: bool = options.flag(True, help="Include the variance of logits, not only their mean.")
    epsilon: float = options.number(
        0.0, ge=0, le=1, help="Added to the expected attention before multiplying by the value norm."
    )
    statistics: str = options.choice(
        "queries",
        ("queries", "hidden_states"),
        help='Source of the query distribution: the "queries" of the text with their rotary embedding '
        'undone, or its "hidden_states" through the query projection.',
    )

    def scorer(self, info: ModelInfo, place: int) -> Scorer:
        return ExpectedAttention(
            info.rope(place),
            future=self.future,
            sinks=self.sinks,
            covariance=self.covariance,
            epsilon=self.epsilon,
            projections=None if self.statistics == "queries" else self._projections(info, place),
        )

    def _projections(self, info: ModelInfo, place: int):
        if info.projections is None:
            raise SpecError(f"{self.name}: statistics=hidden_states needs a model; give statistics=queries")
        return info.projections(place)
