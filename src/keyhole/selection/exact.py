"""The oracle: exact logits of every key. It bounds what a selector can reach, and saves no reads of keys."""

from __future__ import annotations

from torch import Tensor

from keyhole import kernels
from keyhole.attention import Logits
from keyhole.kernels.pq.tables import softcapped
from keyhole.selection.base import Selection, Step, Unindexed
from keyhole.selection.picking.rank import pick


class ExactSelector(Unindexed):
    """Scores the stored keys themselves."""

    def select(self, step: Step) -> Selection:
        return pick(exact_logits(step), step)

    def bytes_read(self, step: Step) -> int:
        return step.regions.last * step.storage.keys(step.regions.last)[0, 0, 0].nbytes


def exact_logits(step: Step) -> Tensor:
    """Logits of all stored keys, float32 `[B, Hkv, G, N]`."""
    return key_logits(step.query, step.storage.keys(), step.logits)


def key_logits(query: Tensor, keys: Tensor, how: Logits) -> Tensor:
    """Logits `[B, Hkv, G, N]`, float32, of `query [B, H, D]` against `keys [B, Hkv, N, D]`."""
    query = query.unflatten(1, (keys.shape[1], -1)).flatten(0, 1)
    logits = kernels.exact_scores(query, keys.flatten(0, 1), 0, keys.shape[2], scale=how.scale)
    return softcapped(logits, how.softcap).unflatten(0, keys.shape[:2])
