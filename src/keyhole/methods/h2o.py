"""H2O, and Keyformer, which scores with noise."""

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

    The scores of the heads of a group are summed, so that a KV head keeps one set.
    """

    name: ClassVar[str] = "h2o"
    paper: ClassVar[str] = "H2O, arXiv 2306.14048"
    summary: ClassVar[str] = "keeps the newest tokens and those that got most attention so far"
    facts: ClassVar[Facts] = Facts(
        stored="The keys and values that were kept, their positions, and the attention each token got.",
        select="Nothing is selected: all that was kept is read; its logits are summed up as it is read.",
        best_for="Long answers: what matters is learned anew with every token that is generated.",
        weak_at="Early tokens, which more queries could see, are favoured; a later question may need what was"
        " dropped. A prompt's queries are all multiplied with its keys once more.",
        kept=f"{EVICTED} + 4 + 4 * normalise",
        differs=(
            _SINKS,
            Differs("budget", "0.2 of the prompt, fixed when it ends", "it follows the current length"),
        ),
    )

    every: int = 1
    recent: float = options.number(
        0.5,
        ge=0.0,
        le=1.0,
        help="Share of the budget that the newest tokens have, where that is more than the window.",
    )
    queries: int = options.integer(
        0,
        ge=0,
        unit="tokens",
        help="Of a prompt, or of a piece of it, only the newest so many count; 0 is all.",
    )
    normalise: bool = options.flag(
        False,
        help="Divide what a token got by the number of queries that could see it, which are more for early "
        "ones.",
    )

    def scorer(self, info: ModelInfo, place: int) -> Scorer:  # noqa: ARG002
        return Accumulated(queries=self.queries, normalise=self.normalise)

    def policy(self, share: LayerShare) -> EvictionPolicy:
        return super().policy(share)._replace(recent=self.recent)


@dataclass(frozen=True)
class Keyformer(H2O):
    """Adnan et al., "Keyformer: KV Cache Reduction through Key Tokens Selection for Efficient Generative
    Inference", MLSys 2024.

    H2O's scores, of logits with Gumbel noise and a temperature that grows while tokens are generated; neither
    touches the output. Without noise, and at temperature 1, it is H2O. Noise depends on the seed, the layer,
    the query head and the positions in the text, so that neither the batch nor the pieces of a prompt matter.
    """

    name: ClassVar[str] = "keyformer"
    paper: ClassVar[str] = "Keyformer, arXiv 2403.09054"
    summary: ClassVar[str] = "H2O by noisy scores, which evictions distort less"
    facts: ClassVar[Facts] = H2O.facts._replace(
        best_for="Long answers, as H2O, at small budgets: noise keeps tokens that got little attention yet.",
        differs=(_SINKS, Differs("budget", "0.6", ALIKE)),
    )

    recent: float = 0.3
    noise: str = options.choice(
        "gumbel",
        (*kernels.NOISES, "none"),
        help='"gumbel", "gaussian" of the same mean and variance, their mean as a "constant" (which changes '
        'no softmax), or "none".',
    )
    seed: int = options.integer(0, ge=0, le=2**63 - 1, help="Of the noise.")
    tau_init: float = options.number(1.0, ge=0.01, le=100.0, help="Temperature for the prompt.")
    tau_end: float = options.number(
        2.0, ge=0.01, le=100.0, help="Temperature after `generate` generated tokens, and from then on."
    )
    generate: int = options.integer(
        128,
        ge=1,
        unit="tokens",
        help="Generated tokens in which the temperature moves from one to the other.",
    )
    freeze_keys: bool = options.flag(
        False,
        help="As released: the tokens chosen at the end of a prompt stay; what leaves the window goes.",
    )
    shared_selection: bool = options.flag(
        False, help="As released: batch rows, and so beams, choose by the sum of their scores."
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
