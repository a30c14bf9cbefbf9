"""CHESS: decode steps that read only the weights their activations need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.feedforward import FeedForward, Rule
from keyhole.feedforward.file import read_activations
from keyhole.feedforward.fit import FIRST, WEIGHTINGS
from keyhole.methods import options
from keyhole.methods.base import Method
from keyhole.methods.facts import Differs, Facts


@dataclass(frozen=True)
class Chess(Method):
    """ "CHESS: Optimizing LLM Inference via Channel-Wise Thresholding and Selective
    Sparsification", EMNLP 2024.

    It says which weights a step reads and leaves keys and values to others: `pqcache + chess`. Prompts are
    computed with all weights. A batch of several rows computes with all weights what each row alone gives.

    `chess(weighting=none, attention=false)` is CATS (arXiv 2404.08763): one threshold for all channels.
    """

    name: ClassVar[str] = "chess"
    paper: ClassVar[str] = "CHESS, arXiv 2409.01366"
    summary: ClassVar[str] = "steps skip weights of channels that thresholds find unimportant"
    facts: ClassVar[Facts] = Facts(
        stored="Keys and values as ever, and a threshold for each channel. Output projections lie "
        "transposed in memory from the first cache of this method to `detach`, in place of the usual order.",
        select="Nothing of the cache, which is read whole: R = N. Of the weights, the gate, the projections "
        "of keys and values and the output layer are read whole, of the others what thresholds leave: 73% of "
        "all at half the channels of Llama-3.2-1B.",
        best_for="Single requests on a CPU, where a step takes as long as reading the weights does; before "
        "any method for the cache.",
        weak_at="Batches, where each row needs other channels and all weights are read, GPUs and CPUs "
        "without native code: the answers are those of the sparse weights, without the gain. Prompts gain "
        "nothing. Thresholds found on other text drift; `keyhole generate` shows the share of weights that "
        "was read.",
        differs=(Differs("file", "always some", "works without; `keyhole calibrate chess` makes one"),),
    )

    sparsity: float = options.number(
        0.5,
        ge=0,
        lt=1,
        help="Share of channels that are skipped, a mean over tokens and over the channels of a layer.",
    )
    attention: bool = options.flag(
        True, help="The projections of queries and of attention's output skip inputs, too."
    )
    file: str | None = options.directory(
        help="Written by `keyhole calibrate chess` for the model; without it activations are those of random "
        "tokens, found once, which is less accurate."
    )
    first: str = options.choice(
        "gate", FIRST, help='The factor that is computed for all channels, "gate" or "up".'
    )
    weighting: str = options.choice(
        "mean",
        WEIGHTINGS,
        help='A channel\'s importance is that factor times the "mean" magnitude of the other one, times that '
        'and the "norm" of the channel\'s output weights, or "none" of them.',
    )

    @property
    def rule(self) -> Rule:
        """How channels are chosen."""
        return Rule(self.first, self.weighting)

    def feedforward(self, info: ModelInfo) -> FeedForward:
        known = {}
        if self.sparsity and info.layers and info.activations is not None:
            if self.file is None:
                known = info.activations(self.rule, self.attention)
            else:
                known = read_activations(self.file, info, self.rule, self.attention)
        return FeedForward(self.rule, {name: each.threshold(self.sparsity) for name, each in known.items()})
