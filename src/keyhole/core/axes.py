"""Principal axes of any finite matrix: eigensolvers fail on some, and one of them must not fail a batch."""

from __future__ import annotations

import torch
from torch import Tensor

LinAlgError = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]


def principal_axes(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and orthonormal eigenvectors of symmetric `moments [R, D, D]`, float32.

    Each row is solved as it would be alone: one that float32 fails on, again in float64, and where that fails
    its axes are the channels.
    """
    values, axes = _solved(moments)
    for row in (~axes.isfinite().flatten(1).all(1)).nonzero().flatten().tolist():
        values[row], axes[row] = _apart(moments[row])
    return values, axes


def _solved(moments: Tensor) -> tuple[Tensor, Tensor]:
    try:
        values, axes = torch.linalg.eigh(moments)
    except LinAlgError:
        # It names one row that failed; the others are as good as ever.
        values, axes = moments.new_full(moments.shape[:2], torch.nan), torch.full_like(moments, torch.nan)
        for row, moment in enumerate(moments):
            try:
                values[row], axes[row] = torch.linalg.eigh(moment)
            except LinAlgError:
                continue
    return values, axes


def _apart(moment: Tensor) -> tuple[Tensor, Tensor]:
    try:
        values, axes = torch.linalg.eigh(moment.double())
    except LinAlgError:
        values = axes = moment.new_full((1,), torch.nan)
    if not bool(axes.isfinite().all()):
        values, order = moment.diagonal().nan_to_num().sort()
        return values, torch.eye(len(moment), device=moment.device)[:, order]
    return values.to(moment.dtype), axes.to(moment.dtype)
