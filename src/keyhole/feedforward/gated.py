"""Gated feed-forwards and projections that compute with what an activation needs.

Legend: B tokens, each of its own sequence, N numbers of an input, F channels, M numbers of an output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole import kernels

_ROWS = 512  # of a weight that are held in float32 at once


class Projection(NamedTuple):
    """y = weight @ x + bias, `weight [M, N]`."""

    weight: Tensor
    bias: Tensor | None = None


class Gated(NamedTuple):
    """y = down(activation(gate(x)) * up(x)): weights `gate` and `up [F, N]`, `down [M, F]`."""

    gate: Projection
    up: Projection
    down: Projection
    activation: Callable[[Tensor], Tensor]

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gate after its activation function, and up, `[B, F]` each."""
        return self.activation(project(self.gate, x)), project(self.up, x)


def project(projection: Projection, x: Tensor) -> Tensor:
    """`[B, M]` of `x [B, N]`."""
    if not is_slow(projection.weight):
        return F.linear(x, projection.weight, projection.bias)
    wide = x.float()
    y = torch.cat([F.linear(wide, rows.float()) for rows in projection.weight.split(_ROWS)], dim=-1)
    return _with_bias(y.to(x.dtype), projection.bias)


def is_slow(weight: Tensor) -> bool:
    """Whether torch takes long to multiply with a weight that is stored transposed."""
    transposed = weight.stride(-1) != 1 and weight.stride(-2) == 1
    return transposed and weight.is_cpu and weight.dtype == torch.bfloat16 and not _has_bfloat16()


@cache
def _has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; without them torch falls back to plain loops."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def cut(x: Tensor, threshold: Tensor) -> Tensor:
    """`x [B, N]` with 0 where its magnitude is below the threshold, `[N]` or `[1]`."""
    return x.masked_fill(x.abs() < threshold, 0)  # compared in float32, as thresholds are


def project_sparse(projection: Projection, x: Tensor) -> Tensor:
    """As `project`; for a single token inputs that are 0 are skipped, where there is a kernel for it.

    What is skipped are rows of the transposed weight, so its numbers have to lie in that order.
    """
    transposed = projection.weight.t()
    if not _skips(x, transposed):
        return project(projection, x)
    return _with_bias(kernels.matvec_skip_columns(transposed, x[0]).unsqueeze(0), projection.bias)


def sparse_gated(gated: Gated, x: Tensor, threshold: Tensor, first: str) -> tuple[Tensor, Tensor]:
    """The output `[B, M]` by channels whose first factor reaches the threshold; bool `[B, F]`, which do."""
    lead, other = (gated.gate, gated.up) if first == "gate" else (gated.up, gated.gate)
    # All of it, but for one token the kernel is no slower, and on CPUs the faster one.
    led = _project_where(lead, x, x.new_ones(1, lead.weight.shape[0]))
    led = cut(gated.activation(led) if first == "gate" else led, threshold)
    kept = led != 0
    followed = _project_where(other, x, kept)
    hidden = led * (followed if first == "gate" else gated.activation(followed))
    return project_sparse(gated.down, hidden), kept


def _project_where(projection: Projection, x: Tensor, kept: Tensor) -> Tensor:
    """As `project`, of outputs that are `kept [B, M]`; the others are any finite numbers."""
    if not _skips(x, projection.weight):
        return project(projection, x)
    return _with_bias(
        kernels.matvec_skip_rows(projection.weight, x[0], kept[0]).unsqueeze(0), projection.bias
    )


def _skips(x: Tensor, weight: Tensor) -> bool:
    # The kernels have no gradient.
    return x.shape[0] == 1 and not x.requires_grad and kernels.matvec_skips(weight)


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias
