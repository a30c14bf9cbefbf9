"""H2O, and Keyformer, which scores with noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole import kernels
from keyhole.methods.base import check_choice, check_flag, check_number, check_range
from keyhole.methods.eviction import EvictionMethod
from keyhole.methods.facts import ALIKE, EVICTED, Differs, Facts
from keyhole.retention import Accumulated, EvictionPolicy, LayerShare, NoiseSource, Schedule, Scorer

_SINKS = Differs("sinks", "0", "evicting the first tokens can end generation at once")


@dataclass(frozen=True)
class H2O(EvictionMethod):
    """Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    NeurIPS 2023.

    The scores of the heads of a group are summed, so that a KV head keeps one set.

    Attributes:
        recent: share of the budget that the newest tokens have, where that is more than the window.
        queries: of a prompt, or of a piece of it, only the newest so many count; 0 is all.
        normalise: divide what a token got by the number of queries that could see it, which are more for
            early ones.
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
    recent: float = 0.5
    queries: int = 0
    normalise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "recent", self.recent, 0.0, 1.0)
        check_range(self.name, "queries", self.queries, 0)
        check_flag(self.name, "normalise", self.normalise)

    def scorer(self, place: int) -> Scorer:  # noqa: ARG002
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

    Attributes:
        noise: "gumbel", "gaussian" of the same mean and variance, their mean as a "constant" (which changes
            no softmax), or "none".
        seed: of the noise.
        tau_init: temperature for the prompt.
        tau_end: temperature after `generate` generated tokens, and from then on.
        generate: generated tokens in which the temperature moves from one to the other.
        freeze_keys: as released: the tokens chosen at the end of a prompt stay; what leaves the window goes.
        shared_selection: as released: batch rows, and so beams, choose by the sum of their scores.
    """

    name: ClassVar[str] = "keyformer"
    paper: ClassVar[str] = "Keyformer, arXiv 2403.09054"
    summary: ClassVar[str] = "H2O by noisy scores, which evictions distort less"
    facts: ClassVar[Facts] = H2O.facts._replace(
        best_for="Long answers, as H2O, at small budgets: noise keeps tokens that got little attention yet.",
        differs=(_SINKS, Differs("budget", "0.6", ALIKE)),
    )

    recent: float = 0.3
    noise: str = "gumbel"
    seed: int = 0
    tau_init: float = 1.0
    tau_end: float = 2.0
    generate: int = 128
    freeze_keys: bool = False
    shared_selection: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.name, "noise", self.noise, (*kernels.NOISES, "none"))
        check_range(self.name, "seed", self.seed, 0)
        for option in ("tau_init", "tau_end"):
            check_number(self.name, option, getattr(self, option), 0.01, 100.0)
        check_range(self.name, "generate", self.generate, 1)
        check_flag(self.name, "freeze_keys", self.freeze_keys)
        check_flag(self.name, "shared_selection", self.shared_selection)

    def scorer(self, place: int) -> Scorer:
        return Accumulated(
            None if self.noise == "none" else NoiseSource(self.noise, self.seed, place),
            Schedule(self.tau_init, self.tau_end, self.generate),
            queries=self.queries,
            normalise=self.normalise,
            freeze=self.freeze_keys,
            shared=self.shared_selection,
        )
