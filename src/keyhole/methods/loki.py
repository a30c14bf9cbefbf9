"""Loki and Double Sparsity: every token is ranked by a few numbers of its key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import ALIKE, FOLLOWS, Differs, Facts
from keyhole.selection import NarrowSelector, Selector
from keyhole.selection.quantisers.narrowing import heaviest, principal

_INDEX = "W * e"
_SCAN = "W * e * N + 4 * D * (W + 1)"
_PRODUCTS = "G * W * (N + D)"


@dataclass(frozen=True)
class Loki(RetrievalMethod):
    """Singhania et al., "Loki: Low-rank Keys for Efficient Sparse Attention", NeurIPS 2024.

    Keys, as they are cached, are projected on the axes along which those of a head vary most; tokens are
    ranked by the query's product there, and the best are read exactly. Published, with a quarter of the axes
    and of the tokens: attention up to 45% faster with limited loss of accuracy.

    There axes are calibrated offline on WikiText, before or after RoPE, whichever a model likes better; here
    on each prompt, after RoPE, so that nothing has to be calibrated. The code projects rotated keys by either
    axes. There all of a key is held along its axes, of which the first are read to rank; here a narrow copy
    is held beside.
    """

    name: ClassVar[str] = "loki"
    paper: ClassVar[str] = "Loki, arXiv 2406.02542"
    summary: ClassVar[str] = "ranks all tokens by their keys along a few principal axes"
    facts: ClassVar[Facts] = Facts(
        stored="Per token and KV head, W numbers in the dtype of the keys. Per KV head, as 32-bit floats, "
        "the axes and what they leave out of the mean key. All on the device.",
        select="Products with W numbers of each key, and a ranking of N tokens.",
        best_for="Keys of low rank: every token is ranked by itself, without clusters, and new ones cost a "
        "product.",
        weak_at="Axes are those of the prompt that was read when the first step came. They follow keys, not "
        "what queries ask for.",
        letters="W is `rank`, by default a quarter of D, and at most D.",
        index=_INDEX,
        scan=_SCAN,
        products=_PRODUCTS,
        differs=(Differs("budget", "0.25", f"{ALIKE}; {FOLLOWS}"),),
    )

    rank: int | None = options.integer(
        None, ge=1, optional=True, help="Axes that tokens are ranked by. None is a quarter of the head size."
    )

    def letters(self, head_dim: int, kv_heads: int) -> dict[str, float]:  # noqa: ARG002
        return {"W": min(self.rank or max(1, head_dim // 4), head_dim)}

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [NarrowSelector(principal, self.rank, 4) for _ in info.layers]


@dataclass(frozen=True)
class DoubleSparsity(RetrievalMethod):
    """Yang et al., "Post-Training Sparse Attention with Double Sparsity", 2024.

    A cache of labels holds the channels of each key that weigh most in products; tokens are ranked by them,
    and the best are read exactly. Published: a sixteenth of tokens and of channels at hardly any loss,
    attention up to 14 to 16 times as fast.

    There channels are calibrated offline, in the code by the mean of |q_j k_j| of each token with itself for
    each query head, or by queries or keys alone; labels are rounded to 4 bits, and the code reads the first
    two layers whole. Here channels are those of each prompt, by its keys and the newest of its queries, all
    pairs of them, for each KV head, and labels are not rounded.
    """

    name: ClassVar[str] = "doublesparsity"
    paper: ClassVar[str] = "Double Sparsity, arXiv 2408.07092"
    summary: ClassVar[str] = "ranks all tokens by the heaviest channels of their keys"
    facts: ClassVar[Facts] = Facts(
        stored="Per token and KV head, W numbers in the dtype of the keys. Per KV head, as 32-bit floats, "
        "which channels they are, and what they leave out of the mean key. All on the device.",
        select="Products with W numbers of each key, and a ranking of N tokens.",
        best_for="Models whose products come of few channels.",
        weak_at="Where many channels matter, few rank badly: axes (`loki`) follow them. Channels are those "
        "of the prompt that was read when the first step came.",
        letters="W is `channels`, by default an eighth of D, and at most D.",
        index=_INDEX,
        scan=_SCAN,
        products=_PRODUCTS,
        differs=(
            Differs("budget", "1/16", f"{ALIKE}; {FOLLOWS}"),
            Differs("channels", "D / 16", "as in the released code"),
        ),
    )

    channels: int | None = options.integer(
        None,
        ge=1,
        optional=True,
        help="Channels that tokens are ranked by. None is an eighth of the head size.",
    )

    def letters(self, head_dim: int, kv_heads: int) -> dict[str, float]:  # noqa: ARG002
        return {"W": min(self.channels or max(1, head_dim // 8), head_dim)}

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [NarrowSelector(heaviest, self.channels, 8) for _ in info.layers]
