"""Notice when new keys no longer look like those an index was fitted on."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 128
_MARGIN = 1.25  # block means of equal text differ by chance; a refit for less than this would be in vain


class DriftWatch:
    """Compares the error of each block of new tokens with the range of block errors seen when fitting.

    Codebooks fitted on a prompt fit a long generation worse and worse (ParisKV measured PQCache's collapse
    on long reasoning); a refit is cheap, so it is enough to notice.
    """

    def __init__(self) -> None:
        self._worst: Tensor | None = None
        self._pending: list[Tensor] = []
        self.exceeded = False

    def state(self) -> dict[str, Tensor]:
        """What was learnt; errors of a block not yet full are left out."""
        return {} if self._worst is None else {"worst_error": self._worst}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._worst = state.get("worst_error")

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""
        if self._worst is not None:
            self._worst = self._worst.index_select(0, rows.to(self._worst.device))
        self._pending = [errors.index_select(0, rows.to(errors.device)) for errors in self._pending]

    def learn(self, errors: Tensor) -> None:
        """Take `errors [B, Hkv, T]`, one for each token fitted, as the range that is normal."""
        blocks = errors.split(_BLOCK, dim=-1)
        # What is left over after the last full block is too few tokens to show a range.
        full = [block for block in blocks if block.shape[-1] == _BLOCK]
        self._worst = torch.stack([block.mean(-1) for block in full or blocks]).amax(0)

    def watch(self, errors: Tensor) -> None:
        """Look at the errors `[B, Hkv, T]` of new tokens; a full block above the range sets `exceeded`."""
        if self._worst is None:
            raise ValueError("no statistics yet; call learn first")
        self._pending.append(errors)
        if sum(part.shape[-1] for part in self._pending) < _BLOCK:
            return
        blocks = torch.cat(self._pending, dim=-1).split(_BLOCK, dim=-1)
        full = [block for block in blocks if block.shape[-1] == _BLOCK]
        self._pending = [block for block in blocks if block.shape[-1] < _BLOCK]
        self.exceeded |= any(bool((block.mean(-1) > _MARGIN * self._worst).any()) for block in full)
