"""Calls of a model with a cache, and whether those that filled it were whole.

A call that breaks off, by an error or an interrupt, leaves some layers with its tokens and others without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from keyhole.cache.request import Request
from keyhole.engines.transformers.cache import KeyholeLayer
from keyhole.engines.transformers.hybrid import HybridLayer


class ServedCache:
    """A cache that is notified of the calls it is used in; see `keyhole_cache.KeyholeCache`."""

    layers: list[Any]

    def begin_call(self, model: PreTrainedModel) -> None:
        """A call of the model with this cache begins."""
        raise NotImplementedError

    @property
    def is_plain(self) -> bool:
        """Whether what comes to it goes to its layers only, which are shown nothing else of the model."""
        raise NotImplementedError

    def begin_step(self) -> None:
        """A token is about to come to all of its layers at once, instead of by `update` of each."""
        raise NotImplementedError

    def end_call(self) -> bool:
        """It is over; returns whether any tokens came."""
        raise NotImplementedError


@dataclass
class CallState:
    """Where the latest call with a cache is.

    Attributes:
        before: tokens there were before it.
        phase: of the request before it; see `Request.state`.
        running: whether it has begun, and not ended.
        last: the layer that was filled last; -1 before the first.
        changing: whether rows are being moved, or that was interrupted.
    """

    before: int = 0
    phase: dict[str, Any] = field(default_factory=dict)
    running: bool = False
    last: int = -1
    changing: bool = False

    def begin(self, before: int, request: Request | None) -> None:
        """The model is called."""
        self.mark(before, request)
        self.running, self.last = True, -1

    def mark(self, before: int, request: Request | None) -> None:
        """This is what a call is taken back to."""
        self.before, self.phase = before, {} if request is None else request.state()

    def is_whole(self, layers: Sequence[Any]) -> bool:
        """Whether all layers hold what the calls so far gave them, as far as their lengths tell."""
        return not self.changing and not (self.running and self.last >= 0) and are_level(layers)

    def can_roll_back(self, layers: Sequence[Any]) -> bool:
        """Whether the layers can forget the latest call.

        Tokens that were dropped do not come back, what was quantised stays so, and half a change is not
        undone.
        """
        return not self.changing and all(
            isinstance(layer, KeyholeLayer)
            and layer.inner.length >= self.before
            and layer.inner.crops_exactly(self.before)
            for layer in layers
        )

    def roll_back(self, layers: Sequence[Any]) -> None:
        """Let the layers forget the latest call, as they can."""
        for layer in layers:
            layer.inner.crop(self.before)
            layer.unfinished = False
            if self.phase:  # else no call was made
                layer.request.restore(self.phase)
        self.running, self.last = False, -1


def are_level(layers: Sequence[Any]) -> bool:
    """Whether layers hold equally many tokens, and none waits for its queries.

    Layers that the model never fills, because they read another layer's keys, do not count; nor do those of
    linear attention, which have no length, and sliding ones, which transformers 5.16 miscounts after a crop.
    """
    layers = [layer.attention if isinstance(layer, HybridLayer) else layer for layer in layers]
    served = [layer for layer in layers if isinstance(layer, KeyholeLayer)]
    others = [layer for layer in layers if isinstance(layer, CacheLayerMixin) and layer not in served]
    lengths = {layer.get_seq_length() for layer in served}
    lengths |= {layer.get_seq_length() for layer in others if not getattr(layer, "is_sliding", False)} - {0}
    return len(lengths) <= 1 and not any(layer.unfinished for layer in served)
