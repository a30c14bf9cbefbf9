"""CriticalKV: the scores of another method, weighted by what values do to the layer's output."""

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

    Goes before a method that drops tokens by the attention they get: `criticalkv + snapkv(budget=0.1)`, or
    h2o, keyformer, pyramidkv, adakv, windowkv, expectedattention. How many tokens a head keeps is that
    method's; which ones is chosen in two stages. The L1 norm of a value is a mean over the query heads of
    its KV head, after each one's part of the output projection.
    """

    name: ClassVar[str] = "criticalkv"
    paper: ClassVar[str] = "CriticalKV, arXiv 2502.03805"
    summary: ClassVar[str] = "another method's scores times the norm of projected values"
    facts: ClassVar[Facts] = Facts(
        stored="What the method that it wraps stores, and the norm of each kept value, as a 32-bit float.",
        select="Nothing is selected: all that was kept is read.",
        best_for="Small budgets of any method that drops tokens by attention: a token whose value is small, "
        "or that the output projection removes, is not worth its place.",
        weak_at="Every value is projected once, which costs as much as the output projection of the prompt. "
        "Models without a linear output projection are refused. windowkv keeps parts of windows with it.",
        kept=f"{EVICTED} + 4",
    )

    alpha: float = options.number(
        0.5, ge=0, le=1, help="Share of each head's tokens that is chosen by the scores alone."
    )

    def wrapped(self, scorer: Scorer, info: ModelInfo, place: int) -> Scorer:
        if not scorer.is_attention:
            raise SpecError(
                f"{self.name} weights attention, and {type(scorer).__name__} scores tokens by something "
                "else; compose it with snapkv, pyramidkv, adakv, windowkv, h2o, "
                "keyformer(freeze_keys=false) or expectedattention"
            )
        output = None if info.projections is None else info.projections(place).output()
        return CriticalScorer(scorer, self.alpha, output)
