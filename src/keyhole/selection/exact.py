"""The oracle: exact logits of every key. It bounds what a selector can reach, and saves no reads of keys."""

from __future__ import annotations

from torch import Tensor

from keyhole.regions import Regions
from keyhole.selection.base import Selection, Selector, Step
from keyhole.selection.rank import pick


class ExactSelector(Selector):
    """Scores the stored keys themselves; keeps no index."""

    def build(self, keys: Tensor, regions: Regions) -> None:  # noqa: ARG002
        self.length = keys.shape[2]

    def append(self, keys: Tensor) -> None:
        self.length += keys.shape[2]

    def select(self, step: Step) -> Selection:
        return pick(exact_logits(step), step)

    def bytes_read(self, step: Step) -> int:
        return step.regions.last * step.storage.keys(step.regions.last)[0, 0, 0].nbytes


def exact_logits(step: Step) -> Tensor:
    """Logits of all stored keys, float32 `[B, Hkv, G, N]`."""
    keys, (scale, softcap, _) = step.storage.keys(), step.logits
    query = step.query.unflatten(1, (keys.shape[1], -1)).float()
    logits = query @ keys.float().transpose(-1, -2) * scale
    return logits if softcap is None else softcap * (logits / softcap).tanh()
