"""The oracle: exact logits of every key. It bounds what a selector can reach, and saves no reads of keys."""

from __future__ import annotations

from torch import Tensor

from keyhole.selection.base import Selection, Selector, Step
from keyhole.selection.rank import pick


class ExactSelector(Selector):
    """Scores the stored keys themselves; keeps no index."""

    def build(self, keys: Tensor, first: Tensor) -> None:  # noqa: ARG002
        self.length = keys.shape[2]

    def append(self, keys: Tensor) -> None:
        self.length += keys.shape[2]

    def select(self, step: Step) -> Selection:
        return pick(exact_logits(step), step)

    def bytes_read(self, step: Step) -> int:
        return step.last * step.keys.shape[-1] * step.keys.element_size()


def exact_logits(step: Step) -> Tensor:
    """Logits of all stored keys, float32 `[B, Hkv, G, N]`."""
    query = step.query.unflatten(1, (step.keys.shape[1], -1)).float()
    logits = query @ step.keys.float().transpose(-1, -2) * step.scale
    return logits if step.softcap is None else step.softcap * (logits / step.softcap).tanh()
