"""The oracle: exact logits of every key. It bounds what a selector can reach, and saves no reads of keys."""

from __future__ import annotations

from torch import Tensor

from keyhole.selection.base import Selection, Step, Unindexed
from keyhole.selection.picking.rank import pick
from keyhole.storage import Storage


class ExactSelector(Unindexed):
    """Scores the stored keys themselves."""

    def select(self, step: Step) -> Selection:
        return pick(step.storage.scores(step.query, step.logits), step)

    def token_logits(self, step: Step) -> Tensor:
        return step.storage.scores(step.query, step.logits)[..., : step.regions.last]

    def bytes_read(self, step: Step) -> int:
        return step.regions.last * key_bytes(step.storage)


def key_bytes(storage: Storage) -> int:
    """Bytes of one key of one KV head."""
    return storage.keys(storage.length - 1)[0, 0, 0].nbytes
