"""What decoding a request read, in numbers that leave the worker's process; imports nothing of vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from keyhole.cache.layer import LayerCache
from keyhole.storage import Footprint


class RequestUsage(NamedTuple):
    """Totals over the decode steps of one request, and what it holds beside the engine's pages.

    Steps that were repeated after a preemption count once.

    Attributes:
        steps: decode steps.
        context: tokens there were, summed over steps, a mean over layers.
        read: tokens read, alike.
        bytes: bytes of keys, values and index read, in all layers and steps.
        held: bytes that indexes and mirrored keys and values take up.
    """

    steps: int = 0
    context: float = 0.0
    read: float = 0.0
    bytes: float = 0.0
    held: Footprint = Footprint()

    @property
    def share(self) -> float:
        """Of the tokens there were, the part that was read; 1 before the first step."""
        return self.read / self.context if self.context else 1.0

    def as_dict(self) -> dict[str, float]:
        """For JSON: the totals, the share, and `held_device`, `held_host` and `held_disk`."""
        totals = self._asdict()
        held = {f"held_{place}": nbytes for place, nbytes in totals.pop("held")._asdict().items()}
        return totals | {"share": self.share} | held


def usage_of(layers: Sequence[LayerCache], held: Footprint) -> RequestUsage:
    """What the layers of one request read, which hold so much beside the engine's pages."""
    counted = [layer.usage for layer in layers]
    return RequestUsage(
        steps=counted[0].steps,
        context=sum(usage.tokens for usage in counted) / len(counted),
        read=sum(usage.read for usage in counted) / len(counted),
        bytes=sum(usage.bytes for usage in counted),
        held=held,
    )
