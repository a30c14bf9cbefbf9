"""The Hadamard rotation, which spreads what is large in a few channels over all of them.

Sources: Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", arXiv 2404.00456.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor


def rotated(vectors: Tensor) -> Tensor:
    """`vectors [..., D]`, float32, times a symmetric orthogonal matrix: done twice, they are as before.

    The matrix has blocks as large as the largest power of two that divides D; an odd D stays as it is.
    """
    size = vectors.shape[-1]
    block = size & -size
    if block == 1:
        return vectors
    turned = vectors.unflatten(-1, (-1, block)) @ _hadamard(block, vectors.device)
    return turned.flatten(-2)


@cache
def _hadamard(size: int, device: torch.device) -> Tensor:
    """Sylvester's matrix `[size, size]` over the square root of its size."""
    one = torch.ones(1, 1, device=device)
    for _ in range(size.bit_length() - 1):
        one = torch.cat([torch.cat([one, one], 1), torch.cat([one, -one], 1)])
    return one / math.sqrt(size)
