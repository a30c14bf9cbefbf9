"""Ranking by ranges of distance: keys without their rotation, queries turned as the tokens of a range ask.

With one range it is the windowed RoPE of A2ATS (arXiv 2502.12665): every key counts as a constant number of
tokens back. With several, each range has the mean of its tokens' rotations, in which channels that turn
quickly cancel and those that turn slowly still say how far away a token is. Keys need not know either way.

Legend: B batch, H query heads, R ranges, T tokens, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.core.rope import Rope

_SAMPLES = 64  # distances of a range whose rotations are averaged


class Distances:
    """`ranges` of distances from `window` to twice `distance`, each longer than the one before by one factor.

    The last range has no end. A single range is the constant `distance`.
    """

    def __init__(self, rope: Rope, distance: int, *, ranges: int = 1, window: int = 1) -> None:
        self.rope, self.distance = rope, distance
        least, ratio = max(window, 1), 2 * distance / max(window, 1)
        self.edges = tuple(round(least * ratio ** (at / ranges)) for at in range(ranges + 1))
        self._turned: dict[tuple[int, torch.device], Tensor] = {}  # `[R, D, D]`

    @property
    def ranges(self) -> int:
        """How many there are."""
        return len(self.edges) - 1

    def range_of(self, distances: Tensor) -> Tensor:
        """The range of each of `distances`, int64 of any shape."""
        # By comparison: there are few, and a GPU is not to be given numbers at each step.
        return sum((distances >= edge for edge in self.edges[1:-1]), torch.zeros_like(distances))

    def keys(self, keys: Tensor, slots: Tensor, padding: Tensor) -> Tensor:
        """Keys `[B, H, T, D]` of `slots [T]` or `[B, T]`, with `padding [B]` before them, at position 0."""
        return self.rope.unrotate(keys, slots - padding.unsqueeze(1))

    def queries(self, query: Tensor, slot: int | Tensor, padding: Tensor) -> Tensor:
        """`query [B, H, D]` of a slot, one or `[B]`, as it ranks the tokens of each range; `[B, R, H, D]`."""
        moves = padding - slot
        bare = self.rope.rotate(query.unsqueeze(2), moves.unsqueeze(1)).squeeze(2)
        return self.turned(bare.unsqueeze(1))

    def turned(self, bare: Tensor) -> Tensor:
        """`bare [..., 1, H, D]` at position 0, as it ranks tokens of each range; float32 `[..., R, H, D]`."""
        key = bare.shape[-1], bare.device
        if key not in self._turned:
            self._turned[key] = torch.stack([self._mean_rotation(at, *key) for at in range(self.ranges)])
        return bare.float() @ self._turned[key]

    def _mean_rotation(self, number: int, size: int, device: torch.device) -> Tensor:
        """`[D, D]`, what vectors at position 0 are multiplied with."""
        one = torch.eye(size, device=device).view(1, 1, size, size)
        sampled = [self.distance]
        if self.ranges > 1:
            begin, end = self.edges[number : number + 2]
            sampled = list(range(begin, max(end, begin + 1), max(1, (end - begin) // _SAMPLES)))
        places = torch.tensor(sampled, device=device).repeat_interleave(size).unsqueeze(0)
        moved = self.rope.rotate(one.repeat(1, 1, len(sampled), 1), places)
        return moved.view(len(sampled), size, size).mean(0)

    def __deepcopy__(self, memo: dict[int, object]) -> Distances:
        """The same one: it is the layer's, and holds no state of a request."""
        return self
