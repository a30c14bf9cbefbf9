"""Softmax weights of many queries, summed by key.

Shapes: R rows (batch x KV heads), G query heads of a KV head, Q queries, N slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_native
from keyhole.kernels.backend.native import call
from keyhole.kernels.ranking.noise import Noise


def add_columns(
    sums: Tensor,
    logits: Tensor,
    first: Tensor,
    *,
    noise: Noise | None = None,
    temperature: float = 1.0,
    sink_logits: Tensor | None = None,
    impl: str = "auto",
) -> None:
    """Add to `sums` [R, N] (float32) the softmax weights of `logits` [R, G, Q, N] (float32) over G and Q.

    Query i sees the slots first[r] .. N - Q + i (first int64 [R]). Its weights are the softmax of
    (logits + noise) / temperature over what it sees; sink_logits [R, G] only enter the denominator, as
    logits without noise. A query that sees nothing, or whose logits are not finite, adds nothing.
    """
    _check(sums, logits, first, noise, sink_logits)
    kinds = noise is None or noise.kind == "gumbel"
    if use_native(impl, sums, logits, first, supported=kinds and sums.stride(1) == 1):
        _native(sums, logits, first, noise, temperature, sink_logits)
        return
    products = logits if noise is None else logits + noise.sample()
    slots = torch.arange(sums.shape[1], device=sums.device)
    own = slots[sums.shape[1] - logits.shape[2] :].unsqueeze(-1)
    seen = (slots <= own) & (slots >= first.view(-1, 1, 1, 1))
    products = (products / temperature).masked_fill(~seen, -torch.inf)
    lse = products.logsumexp(-1, keepdim=True)
    if sink_logits is not None:
        lse = torch.logaddexp(lse, sink_logits.float()[..., None, None] / temperature)
    weights = (products - lse).exp()
    sums += weights.masked_fill(~lse.isfinite(), 0.0).sum((1, 2))


def _native(
    sums: Tensor,
    logits: Tensor,
    first: Tensor,
    noise: Noise | None,
    temperature: float,
    sink_logits: Tensor | None,
) -> None:
    logits, first = logits.contiguous(), first.contiguous()
    words = places = None
    if noise is not None:
        words, places = noise.words.contiguous(), noise.places
        places = places if places.stride(1) == 1 else places.contiguous()
    sinks = None if sink_logits is None else sink_logits.float().contiguous()
    call(
        "kh_add_columns", logits.data_ptr(), *logits.shape, first.data_ptr(),
        None if words is None else words.data_ptr(), None if places is None else places.data_ptr(),
        0 if places is None else places.stride(0), None if sinks is None else sinks.data_ptr(),
        1 / temperature, sums.data_ptr(), sums.stride(0),
    )  # fmt: skip


def _check(
    sums: Tensor, logits: Tensor, first: Tensor, noise: Noise | None, sink_logits: Tensor | None
) -> None:
    if logits.dim() != 4 or sums.shape != (logits.shape[0], logits.shape[3]):
        raise ValueError(f"sums {list(sums.shape)} do not fit logits {list(logits.shape)}")
    if sums.dtype != torch.float32 or logits.dtype != torch.float32:
        raise TypeError(f"sums are {sums.dtype} and logits {logits.dtype}, expected float32")
    rows, heads, queries, slots = logits.shape
    if queries > slots:
        raise ValueError(f"{queries} queries are more than the {slots} slots they belong to")
    if first.shape != (rows,) or first.dtype != torch.int64:
        raise ValueError(f"first is {first.dtype} {list(first.shape)}, expected int64 [{rows}]")
    if sink_logits is not None and sink_logits.shape != (rows, heads):
        raise ValueError(f"sink_logits {list(sink_logits.shape)} do not fit logits {list(logits.shape)}")
    if noise is not None and (
        noise.words.shape != (rows, heads, queries, 2) or noise.places.shape != (rows, slots)
    ):
        raise ValueError(
            f"noise of words {list(noise.words.shape)} and places {list(noise.places.shape)} does not fit "
            f"logits {list(logits.shape)}"
        )
    if noise is not None and (noise.words.dtype != torch.int32 or noise.places.dtype != torch.int32):
        raise TypeError(f"words are {noise.words.dtype} and places {noise.places.dtype}, expected int32")
