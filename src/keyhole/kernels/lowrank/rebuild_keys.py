"""Keys rebuilt from coefficients of low rank, each turned to the position at which it stands (ShadowKV).

Source: "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference", arXiv 2410.21465.

Shapes: B batch, Hkv KV heads, N tokens, S slots, D head size, R rank, P pairs of channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_triton
from keyhole.kernels.backend.native import FLOATS
from keyhole.kernels.backend.rows import at

_LARGEST = 256  # head size and rank of what the Triton kernel takes


class RotaryFrequencies(NamedTuple):
    """A rotary position embedding in numbers: at position p, pair i is turned by p * frequencies[i].

    Attributes:
        frequencies: float32 `[P]`, in radians.
        adjacent: pair i are channels 2i and 2i + 1, else i and i + P. Channels from 2P on stay as they are.
    """

    frequencies: Tensor
    adjacent: bool


def rebuild_keys(
    coefficients: Tensor,
    axes: Tensor,
    mean: Tensor,
    slots: Tensor,
    padding: Tensor,
    turning: RotaryFrequencies,
    *,
    impl: str = "auto",
) -> Tensor:
    """Keys [B, Hkv, S, D] of slots [B, Hkv, S], in the dtype of coefficients [B, N, R].

    A key is axes[b, h] times its coefficients plus mean[b, h], turned to position slot - padding[b]; axes are
    float32 [B, Hkv, D, R], mean is [B, Hkv, D]. Slots lie in 0 .. N - 1; on a GPU others give anything.

    Raises:
        ValueError: shapes do not fit.
    """
    _check(coefficients, axes, mean, slots, padding, turning)
    batch, tokens, rank = coefficients.shape
    size = axes.shape[2]
    supported = coefficients.dtype in FLOATS and max(size, rank) <= _LARGEST and size % 2 == 0
    operands = coefficients, axes, mean, slots, padding, turning.frequencies
    if use_triton(impl, *operands, supported=supported):
        from keyhole.kernels.lowrank.triton.rebuild_keys import rebuild_keys as on_gpu

        return on_gpu(*operands, adjacent=turning.adjacent)
    shared = coefficients.unsqueeze(1).expand(batch, slots.shape[1], tokens, rank)
    keys = at(shared, slots).float() @ axes.transpose(-1, -2) + mean.unsqueeze(2)
    # Slots that all heads have in common take their angles once: angles are what takes time.
    apart = slots[:, :1] if slots.stride(1) == 0 else slots
    return apply_rotary(keys, apart - padding.view(-1, 1, 1), turning).to(coefficients.dtype)


def apply_rotary(vectors: Tensor, positions: Tensor, turning: RotaryFrequencies) -> Tensor:
    """Float32 vectors [B, H, T, D] turned to positions [B, H or 1, T]."""
    pairs = len(turning.frequencies)
    if pairs == 0:
        return vectors
    angles = positions.unsqueeze(-1) * turning.frequencies
    cos, sin = angles.cos(), angles.sin()
    moved, still = vectors[..., : 2 * pairs], vectors[..., 2 * pairs :]
    halves = moved.unflatten(-1, (-1, 2) if turning.adjacent else (2, -1))
    left, right = halves.unbind(-1 if turning.adjacent else -2)
    both = [left * cos - right * sin, right * cos + left * sin]
    moved = torch.stack(both, -1).flatten(-2) if turning.adjacent else torch.cat(both, -1)
    return torch.cat([moved, still], -1) if still.shape[-1] else moved


def _check(
    coefficients: Tensor,
    axes: Tensor,
    mean: Tensor,
    slots: Tensor,
    padding: Tensor,
    turning: RotaryFrequencies,
) -> None:
    dimensions = coefficients.dim() == 3 and axes.dim() == 4 and slots.dim() == 3
    fits = dimensions and (axes.shape[0], axes.shape[3]) == coefficients.shape[::2]
    fits = fits and mean.shape == axes.shape[:3] and slots.shape[:2] == axes.shape[:2]
    fits = fits and padding.shape == slots.shape[:1] and 2 * len(turning.frequencies) <= axes.shape[2]
    if not fits:
        shapes = [list(tensor.shape) for tensor in (axes, mean, slots, padding, turning.frequencies)]
        raise ValueError(
            f"axes, mean, slots, padding and frequencies {shapes} do not fit coefficients "
            f"{list(coefficients.shape)}"
        )
