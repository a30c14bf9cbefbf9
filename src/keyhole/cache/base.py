"""What an engine asks of a layer at work, whatever kind it is.

Legend: B batch, H query heads, Hkv KV heads, Q queries, T tokens, N cached tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from torch import Tensor

from keyhole.attention import Logits
from keyhole.cache.decode_step import Read
from keyhole.cache.request import Request
from keyhole.cache.usage import Usage
from keyhole.storage import Footprint, Storage


class Observation(NamedTuple):
    """One selective decode step: `query [B, H, D]`, what is stored, what was read."""

    query: Tensor
    storage: Storage
    read: Read
    logits: Logits


Observer = Callable[[Observation], object]


class Layer(Protocol):
    """One attention layer's keys and values at work, for one batch.

    `LayerCache` keeps everything, `EvictingLayer` drops tokens, `CapturedLayer` takes steps of fixed size and
    refuses what would change the sequence otherwise.
    """

    request: Request
    usage: Usage

    @property
    def length(self) -> int:
        """Tokens appended and not cropped, those that were dropped among them."""
        ...

    @property
    def newest(self) -> Tensor:
        """The newest token's keys, `[B, Hkv, 1, D]`; ValueError where nothing was appended."""
        ...

    def crops_exactly(self, length: int) -> bool:
        """Whether a crop to `length` tokens leaves what there was before the later ones came."""
        ...

    def arrive(self, tokens: int, generated: Callable[[], bool | None]) -> None:
        """The model is called with so many tokens; the first layer of a request notes what they are."""
        ...

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add `keys [B, Hkv, T, D]`, after RoPE, and `values [B, Hkv, T, Dv]`."""
        ...

    def attend(self, query: Tensor, logits: Logits, *, mask: Tensor | None = None) -> Tensor:
        """Attention of the newest tokens' `query [B, H, Q, D]`; returns `[B, H, Q, Dv]`."""
        ...

    def prepare(self, mask: Tensor | None = None) -> None:
        """Bring the index up to date now, before the next step asks."""
        ...

    def crop(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order, repeats and omissions allowed."""
        ...

    @property
    def footprint(self) -> Footprint:
        """Bytes held, by tier."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What is held, as named tensors."""
        ...

    def restore(self, state: dict[str, Tensor], indexed: int) -> None:
        """Take over the `state` of an equal layer, of which `indexed` tokens were in the index."""
        ...

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call `observer` after each step that reads a selection, until what is returned is called."""
        ...

    def observed(self) -> AbstractContextManager[list[Observation]]:
        """The steps that read a selection inside a with-block."""
        ...
