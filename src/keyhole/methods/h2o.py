"""H2O, and Keyformer, which adds noise to its scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole import kernels
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.eviction import EvictionMethod
from keyhole.methods.facts import ALIKE, EVICTED, Differs, Facts
from keyhole.retention import Accumulated, EvictionPolicy, LayerShare, NoiseSource, Schedule, Scorer

_SINKS = Differs("sinks", "0", "evicting the first tokens can end generation at once")


@dataclass(frozen=True)
class H2O(EvictionMethod):
    """Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    NeurIPS 2023.

    Scores are summed over the query heads of a group, so that each KV head keeps one set.
    """

    name: ClassVar[str] = "h2o"
    paper: ClassVar[str] = "H2O, arXiv 2306.14048"
    summary: ClassVar[str] = "keeps the newest tokens and those with the largest accumulated attention"
    facts: ClassVar[Facts] = Facts(
        stored="Kept keys and values, their positions, and the accumulated attention of each token.",
        select="No selection: all kept tokens are read, and their attention is accumulated.",
        best_for="Long answers: importance is updated with every generated token.",
        weak_at="Early tokens are favoured, since more queries could see them. Dropped tokens are lost to "
        "later questions. Scoring multiplies all queries of a prompt with its keys a second time.",
        kept=f"{EVICTED} + 4 + 4 * normalise",
        differs=(
            _SINKS,
            Differs("budget", "0.2 of the prompt, fixed at its end", "follows the current length"),
        ),
    )

    every: int = 1
    recent: float = options.number(
        0.5,
        ge=0.0,
        le=1.0,
        help="Fraction of the budget for the newest tokens, if larger than the window.",
    )
    queries: int = options.integer(
        0,
        ge=0,
        unit="tokens",
        help="Accumulate only over this many newest queries of each prompt piece; 0 is all.",
    )
    normalise: bool = options.flag(
        False,
        help="Divide accumulated attention by the number of queries that could see the token.",
    )

    def scorer(self, info: ModelInfo, place: int) -> Scorer:  # noqa: ARG002
        return Accumulated(queries=self.queries, normalise=self.normalise)

    def policy(self, share: LayerShare) -> EvictionPolicy:
        return super().policy(share)._replace(recent=self.recent)


@dataclass(frozen=True)
class Keyformer(H2O):
    """Adnan et al., "Keyformer: KV Cache Reduction through Key Tokens Selection for Efficient Generative
    Inference", MLSys 2024.

    H2O's scores from logits with Gumbel noise and a temperature that rises during generation; attention
    outputs are unaffected. Without noise and at temperature 1 it is H2O. The noise depends on the seed, the
    layer, the query head and the token positions only, so results do not depend on the batch or on prompt
    chunking.
    """

    name: ClassVar[str] = "keyformer"
    paper: ClassVar[str] = "Keyformer, arXiv 2403.09054"
    summary: ClassVar[str] = "H2O with noisy scores, less biased by earlier evictions"
    facts: ClassVar[Facts] = H2O.facts._replace(
        best_for="Long answers at small budgets: noise retains tokens that have had little attention so far.",
        differs=(_SINKS, Differs("budget", "0.6", ALIKE)),
    )

    recent: float = 0.3
    noise: str = options.choice(
        "gumbel",
        (*kernels.NOISES, "none"),
        help='Noise added to logits: "gumbel"; "gaussian" with the same mean and variance; "constant", '
        'their mean (no effect on the softmax); or "none".',
    )
    seed: int = options.integer(0, ge=0, le=2**63 - 1, help="Seed of the noise.")
    tau_init: float = options.number(1.0, ge=0.01, le=100.0, help="Temperature for the prompt.")
    tau_end: float = options.number(
        2.0, ge=0.01, le=100.0, help="Temperature after `generate` generated tokens."
    )
    generate: int = options.integer(
        128,
        ge=1,
        unit="tokens",
        help="Generated tokens over which the temperature moves from `tau_init` to `tau_end`.",
    )
    freeze_keys: bool = options.flag(
        False,
        help="As in the released code: tokens chosen at the end of the prompt stay, and tokens that leave "
        "the window are dropped.",
    )
    shared_selection: bool = options.flag(
        False, help="As in the released code: batch rows (and beams) choose by the sum of their scores."
    )

    def scorer(self, info: ModelInfo, place: int) -> Scorer:  # noqa: ARG002
        return Accumulated(
            None if self.noise == "none" else NoiseSource(self.noise, self.seed, place),
            Schedule(self.tau_init, self.tau_end, self.generate),
            queries=self.queries,
            normalise=self.normalise,
            freeze=self.freeze_keys,
            shared=self.shared_selection,
        )
