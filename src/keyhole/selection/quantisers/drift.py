"""Notice when new keys no longer look like those an index was fitted on, for each batch row by itself.

Legend: B batch, Hkv KV heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 128
_MARGIN = 1.25  # block means of equal text differ by chance; a refit for less than this would be in vain
_WAIT = 4  # a refit waits for a quarter as many new tokens as it fits, so that its cost is spread


class DriftWatch:
    """Compares the error of each block of new tokens with the range of block errors seen when fitting.

    Codebooks fitted on a prompt fit a long generation worse and worse (ParisKV measured PQCache's collapse
    on long reasoning); a refit is cheap, so it is enough to notice. One watches one batch row.
    """

    def __init__(self, worst: Tensor | None = None) -> None:
        self.worst = worst  # float32 `[Hkv]`
        self._pending: list[Tensor] = []
        self.exceeded = False

    def learn(self, errors: Tensor) -> None:
        """Take `errors [Hkv, T]`, one for each token fitted, as the range that is normal."""
        blocks = errors.split(_BLOCK, dim=-1)
        # What is left over after the last full block is too few tokens to show a range.
        full = [block for block in blocks if block.shape[-1] == _BLOCK]
        self.worst = torch.stack([block.mean(-1) for block in full or blocks]).amax(0)

    def watch(self, errors: Tensor) -> None:
        """Look at the errors `[Hkv, T]` of new tokens; a full block above the range sets `exceeded`."""
        if self.worst is None:
            raise ValueError("no statistics yet; call learn first")
        # Not added to the list: copies of a row share it.
        self._pending = [*self._pending, errors]
        if sum(part.shape[-1] for part in self._pending) < _BLOCK:
            return
        blocks = torch.cat(self._pending, dim=-1).split(_BLOCK, dim=-1)
        full = [block for block in blocks if block.shape[-1] == _BLOCK]
        self._pending = [block for block in blocks if block.shape[-1] < _BLOCK]
        self.exceeded |= any(bool((block.mean(-1) > _MARGIN * self.worst).any()) for block in full)


@dataclass
class _Row:
    """A batch row: its watch, slots there were at its last fit, and how many of these are padding."""

    watch: DriftWatch
    slots: int
    padding: int


class Refits:
    """Which batch rows of an index are due for a new fit, each as it would be alone.

    Args:
        sample: the most tokens that a row is fitted on.
    """

    def __init__(self, sample: int) -> None:
        self.sample = sample
        self._rows: dict[int, _Row] = {}

    def learn(self, errors: Tensor, padding: Sequence[int], rows: Sequence[int]) -> None:
        """Of `errors [B, Hkv, T]` of all tokens, take those of `rows`, which were fitted on them."""
        for row in rows:
            watch = DriftWatch()
            watch.learn(errors[row, :, padding[row] :])
            self._rows[row] = _Row(watch, errors.shape[-1], padding[row])

    def watch(self, errors: Tensor, without: Sequence[int] = ()) -> None:
        """Look at the errors `[B, Hkv, T]` of new tokens, but for those of rows that are being fitted."""
        for row, own in enumerate(errors):
            if row not in without:
                self._rows[row].watch.watch(own)

    def due(self, length: int) -> list[int]:
        """The rows to be fitted, when there are `length` slots."""
        return [
            at
            for at, row in self._rows.items()
            if row.watch.exceeded and length >= row.slots + min(row.slots - row.padding, self.sample) // _WAIT
        ]

    def crop(self, length: int) -> None:
        """Forget the slots from `length` on."""
        for row in self._rows.values():
            row.slots = max(min(row.slots, length), row.padding)

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""
        if self._rows:
            taken = (self._rows[row] for row in rows.tolist())
            self._rows = {at: _Row(copy(row.watch), row.slots, row.padding) for at, row in enumerate(taken)}

    def state(self) -> dict[str, Tensor]:
        """What was learnt; errors of a block not yet full are left out."""
        worst = [row.watch.worst for _, row in sorted(self._rows.items())]
        known = [one for one in worst if one is not None]
        return {"worst_error": torch.stack(known)} if known else {}

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        """Take over a `state` of so many slots."""
        worst = state.get("worst_error", ())
        self._rows = {at: _Row(DriftWatch(one), length, 0) for at, one in enumerate(worst)}
