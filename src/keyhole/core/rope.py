"""Rotary position embedding, for the methods that look at keys as they were before it.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv 2104.09864.

Legend: B batch, H heads, T tokens, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.kernels import RotaryFrequencies, apply_rotary


class Rope(ABC):
    """The rotation of one layer: linear, orthogonal, and by the sum of two positions what it is by both.

    A vector at position 0 is one before rotation, but for the factor by which some models (YaRN) scale what
    they rotate: it stays in, so that products of rotated vectors are the model's logits.
    """

    @abstractmethod
    def rotate(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Vectors `[B, H, T, D]` moved on by `positions`, whole numbers `[B or 1, T]`; float32."""

    def unrotate(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Vectors `[B, H, T, D]` at `positions [B or 1, T]` as they would be at position 0; float32."""
        return self.rotate(vectors, -positions)

    def rotate_each(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Vectors `[B, H, T, D]` moved on by `positions [B, H, T]`, other ones for each head; float32."""
        if positions.is_cpu and torch.equal(positions, positions[:, :1].expand(positions.shape)):
            # Angles are what takes time, and these are the same for all heads; a GPU does not wait to know.
            return self.rotate(vectors, positions[:, 0])
        moved = self.rotate(vectors.flatten(0, 1).unsqueeze(1), positions.flatten(0, 1))
        return moved.view(vectors.shape)

    def turning(self, size: int, device: torch.device) -> RotaryFrequencies | None:  # noqa: ARG002
        """The rotation of vectors of `size` numbers as kernels take it; None where there is only `rotate`."""
        return None

    def __deepcopy__(self, memo: dict[int, object]) -> Rope:
        """The same one: it is the layer's, not a request's, and holds no state."""
        return self


class NoRope(Rope):
    """A layer that encodes no position."""

    def rotate(self, vectors: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG002
        return vectors.float()

    def turning(self, size: int, device: torch.device) -> RotaryFrequencies:  # noqa: ARG002
        return RotaryFrequencies(torch.empty(0, device=device), adjacent=False)


class PlainRope(Rope):
    """The rotation of the source: channel i is paired with channel i + D / 2."""

    def __init__(self, base: float = 10_000.0) -> None:
        self.base = base

    def rotate(self, vectors: Tensor, positions: Tensor) -> Tensor:
        turning = self.turning(vectors.shape[-1], vectors.device)
        return apply_rotary(vectors.float(), positions.unsqueeze(1), turning)

    def turning(self, size: int, device: torch.device) -> RotaryFrequencies:
        half = size // 2
        exponents = torch.arange(half, dtype=torch.float32, device=device) / half
        return RotaryFrequencies(self.base**-exponents, adjacent=False)


class FrequencyRope(Rope):
    """A rotation by given frequencies, of the first channels; those behind stay as they are.

    Args:
        frequencies: gives the radians per position of each pair, `[pairs]`.
        adjacent: whether channel 2i is paired with 2i + 1, in place of i with i + pairs.
    """

    def __init__(self, frequencies: Callable[[], Tensor], *, adjacent: bool) -> None:
        self.frequencies, self.adjacent = frequencies, adjacent

    def rotate(self, vectors: Tensor, positions: Tensor) -> Tensor:
        return apply_rotary(vectors.float(), positions.unsqueeze(1), self._at(vectors.device))

    def turning(self, size: int, device: torch.device) -> RotaryFrequencies | None:
        found = self._at(device)
        return found if 2 * len(found.frequencies) <= size else None

    def _at(self, device: torch.device) -> RotaryFrequencies:
        return RotaryFrequencies(self.frequencies().float().to(device), self.adjacent)


class FixedDistance(NamedTuple):
    """Ranking as if every key lay `distance` positions back, the far ones within the range of a model.

    The scoring of TokenSelect (arXiv 2411.02886). `core.distances` has windowed RoPE.
    """

    rope: Rope
    distance: int

    def keys(self, keys: Tensor, slots: Tensor, padding: Tensor) -> Tensor:
        """Keys `[B, H, T, D]` of `slots [T]` or `[B, T]`, with `padding [B]` before them, at position 0."""
        return self.rope.unrotate(keys, slots - padding.unsqueeze(1))

    def query(self, query: Tensor, slot: int | Tensor, padding: Tensor) -> Tensor:
        """`query [B, H, D]` of a slot, one or `[B]`, at the position of that distance; float32."""
        moves = self.distance - (slot - padding)
        return self.rope.rotate(query.unsqueeze(2), moves.unsqueeze(1)).squeeze(2)
