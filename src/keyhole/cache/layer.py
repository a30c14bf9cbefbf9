"""The run-time state of one attention layer for one batch: what is stored, what is indexed, what was read.

Legend: B batch, H query heads, Hkv KV heads, Q queries, N cached tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import Logits, add_sink_logits
from keyhole.cache.decode_step import Read, Reader, Reading
from keyhole.cache.usage import Usage
from keyhole.core.autograd import outside_inference_mode
from keyhole.core.errors import NonFiniteError
from keyhole.prefill import Prefill
from keyhole.selection import Selector
from keyhole.storage import Footprint, Storage

SHOWN = 64  # of a prompt's queries, the newest so many are shown to the selector


class Observation(NamedTuple):
    """One selective decode step: `query [B, H, D]`, what is stored, what was read."""

    query: Tensor
    storage: Storage
    read: Read
    logits: Logits


class Prompted(NamedTuple):
    """The newest `queries [B, H, Q, D]` of a prompt, and the way the model makes logits of them."""

    queries: Tensor
    logits: Logits


class LayerCache:
    """One layer's answers to the questions of what to compute, where to place and what to read, at work.

    Tokens are appended with `append`; `attend` answers queries over all that was appended. `observer`, where
    set, is called after each step that read a selection. `remember` is how many of a prompt's newest queries
    are held for layer caches that `take` from this one.
    """

    def __init__(
        self,
        prefill: Prefill,
        storage: Storage,
        selector: Selector | None = None,
        *,
        reading: Reading | None = None,
    ) -> None:
        self.prefill, self.storage, self.selector = prefill, storage, selector
        self.reading = reading
        self._reader = Reader(selector, reading) if selector is not None and reading is not None else None
        self.usage = Usage()
        self.remember = SHOWN
        self._prompted: Prompted | None = None
        self._batch = 1  # sequences, as last appended
        self.observer: Callable[[Observation], None] | None = None
        self.method = "the method"  # as messages name it

    @property
    def length(self) -> int:
        """Tokens appended and not cropped."""
        return self.storage.length

    @property
    def newest(self) -> Tensor:
        """The newest token's keys, `[B, Hkv, 1, D]`.

        Raises:
            ValueError: nothing was appended yet.
        """
        return self.storage.keys(self.storage.length - 1)

    @outside_inference_mode()
    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add `keys [B, Hkv, T, D]`, after RoPE, and `values [B, Hkv, T, Dv]`.

        Raises:
            NonFiniteError: NaN or infinity among them; nothing is stored then.
        """
        if keys.shape[:3] != values.shape[:3]:
            raise ValueError(
                f"keys {list(keys.shape)} and values {list(values.shape)} are not of the same tokens"
            )
        for name, tensor in (("keys", keys), ("values", values)):
            if not torch.isfinite(tensor).all():
                raise NonFiniteError(f"{name} of tokens from {self.length} on hold NaN or infinity")
        self.storage.append(keys, values)
        self._batch = keys.shape[0]

    @outside_inference_mode()
    def attend(self, query: Tensor, logits: Logits, *, mask: Tensor | None = None) -> Tensor:
        """Attention of the newest tokens' `query [B, H, Q, D]` over what is stored; returns `[B, H, Q, Dv]`.

        Several queries are computed as a prompt is; a single one reads what the method selects, and passes
        no gradient then.

        Args:
            mask: bool `[B or 1, 1, Q, N]`, true where a query may look; None is causal without padding.
        """
        if query.shape[2] > 1:
            out = self.prefill.attend(query, self.storage, logits, mask)
            self.see(Prompted(query.detach(), logits))
            return out
        if self._reader is None or self._wants_all(self._reader):
            return self._read_all(query, logits, mask)
        return self._read(self._reader, query.squeeze(2), logits, mask).unsqueeze(2)

    def see(self, prompted: Prompted) -> None:
        """Take note of a prompt's newest queries, which were just attended to; `attend` does so itself."""
        queries = prompted.queries[:, :, -self.remember :].clone()
        self._prompted = prompted._replace(queries=queries)
        if self.selector is not None:
            self.selector.see(queries[:, :, -SHOWN:], self.newest.shape[1], self.length)

    def take(self, other: LayerCache) -> None:
        """Hold what another layer cache holds, as if its tokens, and its prompt's queries, had come here."""
        self.append(other.storage.keys(), other.storage.values())
        if other._prompted is not None:
            self.see(other._prompted)

    @property
    def selects(self) -> bool:
        """Whether a step would read a selection now, and not everything."""
        return self._reader is not None and not self._wants_all(self._reader)

    @property
    def leads(self) -> bool:
        """Whether others read by a step of this layer, which is read whole itself."""
        return self._reader is not None and self._reader.leads(self.length, self._batch)

    def _wants_all(self, reader: Reader) -> bool:
        return reader.wants_all(self.storage.length, self.length, self._batch)

    def _read_all(self, query: Tensor, logits: Logits, mask: Tensor | None) -> Tensor:
        """Attention of `query [B, H, 1, D]` over all that is stored."""
        self._record_all(mask)
        if self._reader is not None and self.leads:
            self._reader.watch(query.squeeze(2), self.storage, logits, mask)
        return self._attend_all(query, logits, mask)

    def _record_all(self, mask: Tensor | None) -> None:
        unused = 0.0 if mask is None else float((~mask[:, 0, -1]).sum(-1).float().mean())
        tokens = self.length - unused
        self.usage.record_everything(tokens, tokens, self.storage.token_bytes)

    def _attend_all(self, query: Tensor, logits: Logits, mask: Tensor | None) -> Tensor:
        return self.storage.attend_all(query, logits, mask)

    @torch.no_grad()
    def _read(self, reader: Reader, query: Tensor, logits: Logits, mask: Tensor | None) -> Tensor:
        """Attention of `query [B, H, D]` over a selection."""
        read = reader.read(query, self.storage, logits, mask, self._context)
        self.usage.record_selection(read, self.storage.token_bytes)
        self.usage.record_lookups(self.storage.lookups)
        if self.observer is not None:
            self.observer(Observation(query, self.storage, read, logits))
        return add_sink_logits(read.part, logits).out

    @property
    def _context(self) -> tuple[int, ...] | None:
        """Tokens each batch row has seen, where that is not what it holds."""
        return None

    def crop(self, length: int) -> None:
        """Forget the tokens from `length` on.

        Raises:
            ValueError: a negative length.
        """
        if length < 0:
            raise ValueError(f"cannot crop to {length} tokens; give 0 or more")
        self._crop(length)

    def _crop(self, length: int) -> None:
        self.storage.crop(length)
        if self.selector is not None:
            self.selector.crop(length)

    @outside_inference_mode()
    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order, repeats and omissions allowed (beam search)."""
        if self.length:
            self._reorder(rows)

    def _reorder(self, rows: Tensor) -> None:
        self.storage.reorder(rows)
        if self.selector is not None:
            self.selector.reorder(rows)
        if self._prompted is not None:
            queries = self._prompted.queries
            self._prompted = self._prompted._replace(queries=queries[rows.to(queries.device)])

    @property
    def footprint(self) -> Footprint:
        """Bytes held by storage and index, by tier."""
        index = 0 if self.selector is None else self.selector.nbytes
        return self.storage.footprint + Footprint(device=index)

    @property
    def indexed(self) -> int:
        """Tokens in the index."""
        return 0 if self.selector is None else self.selector.length

    def state(self) -> dict[str, Tensor]:
        """Storage and index as named tensors; `restore` of an equal layer cache takes them."""
        held = {f"storage.{name}": tensor for name, tensor in self.storage.state().items()}
        if self.selector is not None:
            held |= {f"selector.{name}": tensor for name, tensor in self.selector.state().items()}
        return held

    def restore(self, state: dict[str, Tensor], indexed: int) -> None:
        """Take over a `state`, of which `indexed` tokens were in the index."""
        self.storage.restore(under("storage.", state))
        if self.selector is not None:
            self.selector.restore(under("selector.", state), indexed)

    @outside_inference_mode()
    def prepare(self, mask: Tensor | None = None) -> None:
        """Bring the index up to date now, before the next step asks. `mask` as in `attend`, for one query."""
        if self._reader is not None and self.selects:
            self._reader.index(self.storage, mask, self._context)


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
