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

    Chooses which weights a decode step reads; combine it with a cache method: `pqcache + chess`. Prompts are
    computed with all weights. A batch of several rows gives the results of each row alone, but reads all
    weights.

    `chess(first=gate)` is the paper's; `chess(first=gate, weighting=none, attention=false)` is CATS (arXiv
    2404.08763): one threshold for all channels.
    """

    name: ClassVar[str] = "chess"
    paper: ClassVar[str] = "CHESS, arXiv 2409.01366"
    summary: ClassVar[str] = "decode steps skip weight channels whose activations are below a threshold"
    facts: ClassVar[Facts] = Facts(
        stored="The full KV cache, and one threshold per channel. While the model is attached, output "
        "projections are stored transposed.",
        select="The cache is read whole: R = N. The projection computed `first`, those of keys and values "
        "and the output layer are read whole; of the other weights, the channels above the threshold. With "
        "half the channels skipped, Llama-3.2-1B reads 73% of its weights.",
        best_for="Single requests on a CPU, where reading the weights dominates a decode step; combines with "
        "any cache method.",
        weak_at="Batches (each row needs different channels, so all weights are read), GPUs, and CPUs "
        "without native kernels: outputs are those of the sparse weights, without the speed-up. Prompts are "
        "not faster. Thresholds fitted to other text drift; `keyhole generate` shows the share of weights "
        "read.",
        differs=(
            Differs("first", "gate", "the up projection tells better which channels matter"),
            Differs("file", "always calibrated", "works without one; `keyhole calibrate chess` makes one"),
        ),
    )

    sparsity: float = options.number(
        0.5,
        ge=0,
        lt=1,
        help="Fraction of channels to skip, as a mean over tokens and the channels of a layer.",
    )
    attention: bool = options.flag(
        True, help="Also skip input channels of the query and attention output projections."
    )
    file: str | None = options.directory(
        help="Directory written by `keyhole calibrate chess` for this model. Without it, thresholds are "
        "fitted once to random tokens, which is less accurate."
    )
    first: str = options.choice(
        "up",
        FIRST,
        help='Projection computed for all channels, from which thresholds are applied: "gate" or "up".',
    )
    weighting: str = options.choice(
        "mean",
        WEIGHTINGS,
        help="Importance of a channel: the magnitude of `first`, times the mean magnitude of the other "
        'projection ("mean"), also times the norm of the channel\'s output weights ("norm"), or neither '
        '("none").',
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
