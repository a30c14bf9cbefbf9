"""A layer cache that does not keep every token: slots are what is kept, positions are what was seen.

Legend: B batch, H query heads, Hkv KV heads, Q queries, N slots, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.attention import Logits
from keyhole.cache.decode_step import Reader, Reading
from keyhole.cache.layer import LayerCache, Prompted, under
from keyhole.core.autograd import outside_inference_mode
from keyhole.core.layout import left_padding, packed_slots
from keyhole.core.needs import Informed
from keyhole.prefill import Prefill
from keyhole.retention import Kept, Retention, Seen
from keyhole.selection import Selector
from keyhole.storage import Chosen, Footprint, Merge, Storage


class EvictingLayer(LayerCache):
    """Drops tokens when a prompt, or a piece of it, was attended to, and while decoding if it is to.

    Padding is never kept. What was dropped cannot be read again: after a crop, and for a later question,
    there is what is left. An index is built anew after tokens were dropped.
    """

    def __init__(
        self,
        prefill: Prefill,
        storage: Storage,
        retention: Retention,
        selector: Selector | None = None,
        *,
        reading: Reading | None = None,
    ) -> None:
        super().__init__(prefill, storage, selector, reading=reading)
        self.retention, self.kept = retention, Kept()
        self._pending = False  # a prompt is waiting for its end
        self._generated = 0  # tokens since some were dropped

    @property
    def length(self) -> int:
        return self.kept.seen

    @outside_inference_mode()
    def append(self, keys: Tensor, values: Tensor) -> None:
        if self._pending and keys.shape[2] == 1:
            self._evict()
        super().append(keys.detach(), values.detach())
        batch, heads, tokens, _ = keys.shape
        self.kept.append(batch, heads, tokens, keys.device)
        self.retention.scorer.append(batch, heads, tokens, keys.device)

    @outside_inference_mode()
    def attend(self, query: Tensor, logits: Logits, *, mask: Tensor | None = None) -> Tensor:
        queries = query.shape[2]
        if mask is not None:
            self._drop_padding(left_padding(mask[:, :, -1:], query.shape[0], empty=queries > 1), queries)
        out = super().attend(query, logits, mask=self.kept.mask(queries))
        if queries == 1 and self.retention.policy.every:
            self._generated += 1
            if self._generated >= self.retention.policy.every:
                self._evict()
        return out

    def take(self, other: LayerCache) -> None:
        super().take(other)
        if self._pending:
            self._evict()

    @outside_inference_mode()
    def see(self, prompted: Prompted) -> None:
        super().see(prompted)
        self.retention.scorer.see(Seen(prompted.queries, self.storage, self.kept, prompted.logits))
        self._pending = True
        if not self.retention.policy.whole_prompt:
            self._evict()

    def _wants_all(self, reader: Reader) -> bool:
        # Selectors take heads of one length; a crop into what was dropped from can leave others. Else a step
        # reads by selection where the budget of any row asks for it.
        return self.kept.uneven or reader.wants_all(self.storage.length, min(self.kept.context), self._batch)

    def _record_all(self, mask: Tensor | None) -> None:  # noqa: ARG002
        context = sum(self.kept.context) / len(self.kept.context)
        self.usage.record_everything(context, self.kept.average, self.storage.token_bytes)

    @torch.no_grad()
    def _attend_all(self, query: Tensor, logits: Logits, mask: Tensor | None) -> Tensor:
        scorer, weights = self.retention.scorer, None
        if not self.retention.policy.every:
            return super()._attend_all(query, logits, mask)
        if scorer.watches:
            out, weights = self.storage.weigh_all(query, logits, mask)
        else:
            out = super()._attend_all(query, logits, mask)
        scorer.see(Seen(query, self.storage, self.kept, logits, weights))
        return out

    @torch.no_grad()
    def _evict(self) -> None:
        self._pending, self._generated = False, 0
        chosen = self.retention.choose(self.storage, self.kept)
        if chosen is not None:
            self._keep(chosen, self.retention.merge(self.storage, self.kept, chosen))

    def _drop_padding(self, padding: tuple[int, ...], fresh: int) -> None:
        """Forget the padding, of which more may lie among the newest `fresh` tokens."""
        known, self.kept.padding = self.kept.padding, padding
        if padding != known or max(padding) > self.length - fresh:
            unused = torch.tensor(padding, device=self.kept.filling.device).view(-1, 1, 1)
            self._keep(Chosen(*packed_slots(self.kept.positions >= unused)))

    def _keep(self, chosen: Chosen, into: Merge | None = None) -> None:
        self.storage.keep(chosen, into)
        self.kept.keep(chosen)
        self.retention.scorer.keep(chosen)
        if self.selector is not None:
            self.selector.crop(0)

    @property
    def _parts(self) -> list[Informed]:
        return [*super()._parts, self.retention.scorer]

    @property
    def _context(self) -> tuple[int, ...]:
        return self.kept.context

    @outside_inference_mode()
    def prepare(self, mask: Tensor | None = None) -> None:
        """As in every layer cache; what the next step would drop goes now."""
        if not self.length:
            return
        if mask is not None:
            self._drop_padding(left_padding(mask, len(self.kept.padding)), 1)
        if self._pending:
            self._evict()
        super().prepare(self.kept.mask(1))

    def _crop(self, length: int) -> None:
        tokens = self.length - length
        if length == 0:
            super()._crop(0)
            self.retention.scorer.clear()
            self.kept.clear()
        elif tokens > 0:
            self.retention.scorer.crop(tokens)
            self._cut(length)
            self.kept.forget(length)

    def _cut(self, length: int) -> None:
        """Drop the positions from `length` on; where heads have kept as many of them, indexes stay."""
        positions = self.kept.positions
        gone = (positions >= length).sum(-1)
        chosen = Chosen(*packed_slots((positions >= 0) & (positions < length)))
        left = self.kept.slots - int(gone[0, 0])
        # All rows may begin with filling, after beams took the shorter one.
        if left == 0 or left != int(chosen.counts.max()) or (gone != gone[0, 0]).any():
            self._keep(chosen)
            return
        super()._crop(left)
        self.kept.keep(chosen)
        self.retention.scorer.keep(chosen)

    def _reorder(self, rows: Tensor) -> None:
        super()._reorder(rows)
        self.kept.reorder(rows)
        self.retention.scorer.reorder(rows)

    @property
    def footprint(self) -> Footprint:
        return super().footprint + Footprint(device=self.kept.nbytes + self.retention.scorer.nbytes)

    def state(self) -> dict[str, Tensor]:
        held = super().state() | {"due": torch.tensor([self._pending, self._generated])}
        held |= {f"kept.{name}": tensor for name, tensor in self.kept.state().items()}
        return held | {f"scorer.{name}": tensor for name, tensor in self.retention.scorer.state().items()}

    def restore(self, state: dict[str, Tensor], indexed: int) -> None:
        super().restore(state, indexed)
        pending, self._generated = state["due"].tolist()
        self._pending = bool(pending)
        self.kept.restore(under("kept.", state))
        self.retention.scorer.restore(under("scorer.", state))
