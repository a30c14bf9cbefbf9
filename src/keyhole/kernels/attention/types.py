"""What operations on attention take and give beside tensors.

Letters as in the operations' modules.
"""

from typing import NamedTuple

from torch import Tensor


class Codes(NamedTuple):
    """Numbers low + scale * code; codes of fewer than 8 bits share bytes, as `bits.pack_codes` has them.

    Attributes:
        codes: uint8 `[B, Hkv, n, g, W]`.
        scale: float32, of keys `[B, Hkv, n, D]` for each channel, of values `[B, Hkv, n, g]` for each token.
        low: as `scale`.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor


class Layout(NamedTuple):
    """Bits of a code; numbers of a key and of a value."""

    bits: int
    keys: int
    values: int


class Span(NamedTuple):
    """Slots in [begin[b], end[b]) make the denominators, those in [first[b], stop[b]) are pooled."""

    begin: Tensor  # int [B]
    end: Tensor  # int [B]
    first: Tensor  # int [B]
    stop: Tensor  # int [B]
    last: int  # no stop is behind it


class Pooling(NamedTuple):
    """What a weight is, and how weights become scores.

    Attributes:
        scale: what products of query and key are multiplied by.
        softcap: logits become `softcap * tanh(logits / softcap)`, where given.
        sharpness: scores are made of the softmax of logits times this.
        page: slots of a page; page u is the slots [u * page, (u + 1) * page).
        per_head: scores for each KV head, of its own query heads; else one list, of all heads.
        largest: a slot's score is the largest weight any head gives it; else the mean over the heads.
    """

    scale: float
    softcap: float | None = None
    sharpness: float = 1.0
    page: int = 1
    per_head: bool = False
    largest: bool = False


class Pooled(NamedTuple):
    scores: Tensor  # float32 [B, L, P], sums over the slots of a page; zero for slots that are not pooled
    shares: Tensor  # float32 [B, Hkv, P], mean over the query heads of a KV head
    lse: Tensor  # float32 [B, H], log-sum-exp of the logits in [begin, end)
