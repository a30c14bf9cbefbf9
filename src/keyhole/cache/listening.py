"""What a listener of a request is told: which tokens a layer read in a call of the model.

Legend: B batch, H query heads, Q queries, D head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from keyhole.attention import Logits
    from keyhole.cache.decode_step import Read
    from keyhole.cache.layer import LayerCache
    from keyhole.core.masks import Visible


class LayerRead(NamedTuple):
    """One layer's attention in one call, told before the layer changes again.

    Attributes:
        layer: what is stored now is what was read from.
        query: `[B, H, Q, D]`, the newest tokens' queries.
        seen: what the mask shows of the slots.
        read: what was read; None where everything the mask shows was.
    """

    layer: LayerCache
    query: Tensor
    logits: Logits
    seen: Visible
    read: Read | None


class ReadListener(Protocol):
    """Is called once for each layer of each call; it must not change what it is shown."""

    def __call__(self, event: LayerRead) -> object: ...
