"""The mean logit that the queries right after a token give it, found as these queries come.

Legend: B batch, Hkv KV heads, T tokens, D head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.storage import GrowingBuffer, Storage

_PIECE = 2048  # queries at a time, to bound temporary memory
_SLACK = 1024  # slots that are no longer needed, before memory is given back


class LocalScores:
    """For each slot the sum of logits by up to `local` following queries, and how many of these came."""

    def __init__(self, local: int) -> None:
        self.local = local
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._held = GrowingBuffer()  # float32 `[B, Hkv, slots, 2]`
        self._from = 0  # the first slot held

    @property
    def stop(self) -> int:
        """Tokens there were when queries were last noted."""
        return self._from + self._held.length

    def add(self, queries: Tensor, storage: Storage) -> None:
        """Note the `queries [B, Hkv, T, D]` of the newest tokens stored, summed over the heads of a group."""
        first = storage.length - queries.shape[2]
        for part in queries.float().split(_PIECE, dim=2):
            self._add(part, storage, first)
            first += part.shape[2]

    def _add(self, queries: Tensor, storage: Storage, first: int) -> None:
        tokens = queries.shape[2]
        self._cover(max(first - self.local, 0), first + tokens, queries)
        begin = max(first - self.local, self._from)
        keys = storage.keys(begin)[:, :, : first + tokens - begin].float()
        following = torch.arange(begin + 1, first + tokens + 1, device=queries.device) - first
        starts, ends = following.clamp(0, tokens), (following + self.local).clamp(0, tokens)
        sums = F.pad(queries.cumsum(2), (0, 0, 1, 0))
        logits = ((sums[:, :, ends] - sums[:, :, starts]) * keys).sum(-1)
        counts = (ends - starts).float().expand(logits.shape)
        self._held.view(begin - self._from)[:, :, : keys.shape[2]] += torch.stack([logits, counts], dim=-1)

    def _cover(self, start: int, stop: int, like: Tensor) -> None:
        """Hold slots up to `stop`, those from `start` on where nothing is held."""
        if not self._held.length:
            self._from = start
        missing = stop - self._from - self._held.length
        if missing > 0:
            self._held.append(like.new_zeros(*like.shape[:2], missing, 2))

    def means(self, start: int, keys: Tensor) -> Tensor:
        """Float32 `[B, Hkv, T]` of the slots of `keys [B, Hkv, T, D]`, from `start` on; 0 if unknown."""
        found = torch.zeros(keys.shape[:3], device=keys.device)
        begin, stop = max(start, self._from), min(start + keys.shape[2], self._from + self._held.length)
        if begin < stop:
            sums, counts = self._held.view()[:, :, begin - self._from : stop - self._from].unbind(-1)
            found[:, :, begin - start : stop - start] = sums / counts.clamp(min=1)
        return found

    def forget(self, slot: int) -> None:
        """What is before a slot is no longer needed."""
        gone = min(slot - self._from, self._held.length)
        if gone > _SLACK:
            left = self._held.view(gone)
            self._held, self._from = GrowingBuffer(), self._from + gone
            self._held.append(left)

    def crop(self, length: int) -> None:
        """Forget the slots from `length` on; their queries still count for the slots before."""
        if length <= self._from:
            self.clear()
        else:
            self._held.crop(length - self._from)

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""
        self._held.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        """As named tensors."""
        if not self._held.length:
            return {}
        return {"scores": self._held.view(), "scores_from": torch.tensor(self._from)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self.clear()
        if "scores" in state:
            self._from = int(state["scores_from"])
            self._held.append(state["scores"])

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._held.nbytes
