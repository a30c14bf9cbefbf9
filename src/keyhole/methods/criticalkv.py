"""CriticalKV: another eviction method's scores, weighted by the norm of projected values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.facts import EVICTED, Facts
from keyhole.methods.wrapper import ScoreWrapper
from keyhole.retention import CriticalScorer, Scorer


@dataclass(frozen=True)
class CriticalKV(ScoreWrapper):
    """Feng et al., "Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective",
    2025.

    Wraps a method that evicts by attention scores: `criticalkv + snapkv(budget=0.1)`, or h2o, keyformer,
    pyramidkv, adakv, windowkv, expectedattention. The wrapped method determines how many tokens a head keeps;
    which ones is chosen in two stages. The L1 norm of a projected value is averaged over the query heads of
    its KV head.
    """

    name: ClassVar[str] = "criticalkv"
    paper: ClassVar[str] = "CriticalKV, arXiv 2502.03805"
    summary: ClassVar[str] = "another method's scores times the norm of projected values"
    facts: ClassVar[Facts] = Facts(
        stored="What the wrapped method stores, and the norm of each kept value as a 32-bit float.",
        select="No selection: all kept tokens are read.",
        best_for="Small budgets with any attention-based eviction method: tokens whose values contribute "
        "little to the layer's output are evicted even if they are attended to.",
        weak_at="Every value is projected once, at the cost of the prompt's output projection. Models "
        "without a linear output projection are refused. With it, windowkv may keep parts of windows.",
        kept=f"{EVICTED} + 4",
    )

    alpha: float = options.number(
        0.5, ge=0, le=1, help="Fraction of each head's budget that is chosen by the unweighted scores."
    )

    def wrapped(self, scorer: Scorer, info: ModelInfo, place: int) -> Scorer:
        if not scorer.is_attention:
            raise SpecError(
                f"{self.name} weights attention scores, but {type(scorer).__name__} does not score by "
                "attention; combine it with snapkv, pyramidkv, adakv, windowkv, h2o, "
                "keyformer(freeze_keys=false) or expectedattention"
            )
        output = None if info.projections is None else info.projections(place).output()
        return CriticalScorer(scorer, self.alpha, output)
