"""Keys with a bias on their logits, which any storage holds as a few more channels of them (NOSA).

Legend: B batch, H query heads, Hkv KV heads, T and N tokens, S slots, D and E size of keys and of values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole import kernels
from keyhole.attention import Logits, Part, add_sink_logits, attend_slots, key_logits
from keyhole.attention.biased import CHANNELS, asking_biased, bias_of, biased_attention, with_bias
from keyhole.core.layout import Regions, packed_slots
from keyhole.kernels.backend.rows import at
from keyhole.storage.base import CapturableStorage, Footprint, Lookups, Storage
from keyhole.storage.chosen import Chosen
from keyhole.storage.merging import Merging


class BiasedStorage(CapturableStorage):
    """Attends to what `inner` holds, each token's logit raised by its importance.

    `keys` and `values` are as they came. The importance is found when a token comes, and stays. Values get as
    many channels as keys do, without meaning: kernels read keys and values of one size.

    Args:
        importance_of: float32 `[B, Hkv, T]`, of values `[B, Hkv, T, E]`; None where it is 0 for all, so that
            nothing is stored of it and attention is exactly that of `inner`.
    """

    def __init__(self, inner: Storage, importance_of: Callable[[Tensor], Tensor] | None) -> None:
        self.inner, self._importance_of = inner, importance_of

    @property
    def plain(self) -> bool:
        """Whether no logit is raised."""
        return self._importance_of is None

    @property
    def length(self) -> int:
        return self.inner.length

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.inner.append(*self._raised(keys, values))

    def _raised(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self._importance_of is None:
            return keys, values
        return with_bias(keys, self._importance_of(values)), F.pad(values, (0, CHANNELS))

    def keys(self, start: int = 0) -> Tensor:
        return self._without_bias(self.inner.keys(start))

    def values(self, start: int = 0) -> Tensor:
        return self._without_bias(self.inner.values(start))

    def biased_keys(self) -> Tensor:
        """Keys with the channels of their bias, `[B, Hkv, N, D + CHANNELS]`, unless it is `plain`."""
        return self.inner.keys()

    def importance(self, start: int = 0) -> Tensor:
        """That of the tokens from `start` on, float32 `[B, Hkv, length - start]`."""
        return self._bias_of(self.inner.keys(start))

    def importance_at(self, slots: Tensor) -> Tensor:
        """That of int64 `slots [S]`, float32 `[B, Hkv, S]`, while steps are of fixed size."""
        return self._bias_of(self._capturable.keys_at(slots))

    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        if self.plain:
            return self.inner.attend(query, slots, counts, logits)
        if logits.softcap is None:
            asked = asking_biased(query, logits.scale)
            return _narrowed(self.inner.attend(asked, slots, counts, logits))
        keys, values = self.biased_keys(), self.values()
        chosen = Chosen.of(slots, counts, keys.shape[1])
        shown = chosen.valid_mask().unsqueeze(2)
        keys, values = at(keys, chosen.slots), at(values, chosen.slots)
        return _squeezed(biased_attention(query.unsqueeze(2), keys, values, logits, shown))

    def attend_beside(self, part: Part, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        if self.plain:
            return self.inner.attend_beside(part, query, slots, counts, logits)
        return super().attend_beside(part, query, slots, counts, logits)

    def attend_all(self, query: Tensor, logits: Logits, mask: Tensor | None) -> Tensor:
        if self.plain:
            return self.inner.attend_all(query, logits, mask)
        keys, values = self.biased_keys(), self.values()
        shape = query.shape[0], keys.shape[1], 1, keys.shape[2]
        shown = (
            torch.ones(shape, dtype=torch.bool, device=query.device) if mask is None else mask.expand(shape)
        )
        if logits.softcap is not None:
            part = _squeezed(biased_attention(query, keys, values, logits, shown))
        else:
            slots, counts = packed_slots(shown.squeeze(2), keys.shape[2])
            asked = asking_biased(query.squeeze(2), logits.scale)
            part = _narrowed(attend_slots(asked, keys, self.inner.values(), slots, counts, logits))
        return add_sink_logits(part, logits).out.unsqueeze(2)

    def scores(self, query: Tensor, logits: Logits) -> Tensor:
        return key_logits(query, self.keys(), logits) + self.importance().unsqueeze(2)

    def pooled(self, query: Tensor, span: kernels.Span, how: kernels.Pooling, **extra: Any) -> kernels.Pooled:
        if self.plain:
            return self.inner.pooled(query, span, how, **extra)
        if how.softcap is not None:
            raise ValueError("logits that are capped and raised cannot be pooled; select by another method")
        return self.inner.pooled(asking_biased(query, how.scale), span, how, **extra)

    @property
    def token_bytes(self) -> float:
        return self.inner.token_bytes

    @property
    def lookups(self) -> Lookups:
        return self.inner.lookups

    def settle(self, regions: Regions) -> None:
        self.inner.settle(regions)

    def crops_exactly(self, length: int) -> bool:
        return self.inner.crops_exactly(length)

    def crop(self, length: int) -> None:
        self.inner.crop(length)

    def keep(self, kept: Chosen, into: Merging | None = None) -> None:
        self.inner.keep(kept, into)

    def reorder(self, rows: Tensor) -> None:
        self.inner.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        return self.inner.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self.inner.restore(state)

    @property
    def footprint(self) -> Footprint:
        return self.inner.footprint

    @property
    def varying(self) -> str:
        if not isinstance(self.inner, CapturableStorage):
            return f"its keys and values do not lie on the device, but in a {type(self.inner).__name__}"
        return self.inner.varying

    def reserve(self, tokens: int) -> None:
        self._capturable.reserve(tokens)

    def extend(self, length: int) -> None:
        self._capturable.extend(length)

    def put(self, keys: Tensor, values: Tensor, slot: Tensor) -> None:
        self._capturable.put(*self._raised(keys, values), slot)

    def keys_at(self, slots: Tensor) -> Tensor:
        return self._without_bias(self._capturable.keys_at(slots))

    @property
    def _capturable(self) -> CapturableStorage:
        if not isinstance(self.inner, CapturableStorage):
            raise TypeError(self.varying)
        return self.inner

    def _without_bias(self, rows: Tensor) -> Tensor:
        return rows if self.plain else rows[..., :-CHANNELS]

    def _bias_of(self, keys: Tensor) -> Tensor:
        return torch.zeros(keys.shape[:-1], device=keys.device) if self.plain else bias_of(keys)


def _narrowed(part: Part) -> Part:
    return part._replace(out=part.out[..., :-CHANNELS].contiguous())


def _squeezed(part: Part) -> Part:
    return Part(part.out.squeeze(2), part.lse.squeeze(2))
