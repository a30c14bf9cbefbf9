"""What one layer read in one call, for one row of a batch.

Legend: H KV heads, G query heads to each, N slots, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from keyhole.attention import key_logits
from keyhole.cache.listening import LayerRead


@dataclass
class Reads:
    """One layer of a step; the attributes are as those of `record.Step`, without L.

    Attributes:
        positions: for each KV head, int64, ascending.
        attention: for the newest query the share `[H, N]` of each slot, and the position of each slot
            `[H, N]`, negative for no token; None where exact shares were not asked for.
    """

    positions: list[np.ndarray]
    held: np.ndarray
    missed: np.ndarray
    exact: np.ndarray | None
    nbytes: float
    attention: tuple[np.ndarray, np.ndarray] | None

    @property
    def counts(self) -> np.ndarray:
        return np.array([len(read) for read in self.positions])

    def and_also(self, other: Reads) -> Reads:
        """With what another layer of the model read of the same keys and values."""
        both = [np.union1d(*pair) for pair in zip(self.positions, other.positions, strict=True)]
        exact = None
        if self.exact is not None and other.exact is not None:
            exact = np.maximum(self.exact, other.exact)
        missed = np.maximum(self.missed, other.missed)
        return Reads(both, self.held, missed, exact, self.nbytes + other.nbytes, self.attention)


def reads_of(event: LayerRead, row: int, *, exact: bool) -> Reads:
    """What a layer read for a row of the batch; with `exact`, every key that is held is scored for it."""
    storage = event.layer.storage
    heads = event.layer.newest.shape[1]
    places = event.layer.text_positions(event.seen)[row].expand(heads, -1).numpy()
    slots = _slots(event, row, places)
    positions = [np.sort(places[head, chosen]) for head, chosen in enumerate(slots)]
    held = (places >= 0).sum(-1)
    nbytes = sum(len(read) for read in positions) * storage.token_bytes / heads
    missed = np.zeros(heads, np.float32)
    if event.read is not None:
        nbytes += event.read.index_bytes * heads
        missed = (1 - event.read.selection.mass[row].float()).clamp(0, 1).cpu().numpy()
    if not exact:
        return Reads(positions, held, missed, None, nbytes, None)
    shares = _shares(event, row, places)
    read = np.stack([each[chosen].sum() for each, chosen in zip(shares, slots, strict=True)])
    lacking = np.clip(shares.sum(-1) - read, 0, 1).astype(np.float32)
    return Reads(positions, held, missed, lacking, nbytes, (shares, places))


def _slots(event: LayerRead, row: int, places: np.ndarray) -> list[np.ndarray]:
    """The slots that each KV head read."""
    if event.read is None:
        whole = [np.flatnonzero(each >= 0) for each in places[:1]]
        alike = len(places) == 1 or bool((places == places[:1]).all())
        return whole * len(places) if alike else [np.flatnonzero(each >= 0) for each in places]
    parts, selection = event.read.regions, event.read.selection
    always = parts.always[row, : int(parts.always_counts[row])].cpu().numpy()
    chosen, counts = selection.slots[row].cpu().numpy(), selection.counts[row].tolist()
    return [np.concatenate([always, each[:count]]) for each, count in zip(chosen, counts, strict=True)]


def _shares(event: LayerRead, row: int, places: np.ndarray) -> np.ndarray:
    """The share of the newest query's attention that each held token has, a mean over a group, `[H, N]`.

    What sink logits take is nobody's.
    """
    query, keys = event.query[row : row + 1, :, -1], event.layer.storage.keys()[row : row + 1]
    logits = key_logits(query, keys, event.logits)[0]
    there = torch.from_numpy(places >= 0).to(logits.device).unsqueeze(1)
    logits = logits.masked_fill(~there, -torch.inf)
    every = event.logits.with_sinks(logits.logsumexp(-1).flatten()).view(logits.shape[:2])
    return (logits - every.unsqueeze(-1)).exp().mean(1).cpu().numpy()
