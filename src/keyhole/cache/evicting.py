"""A layer cache that does not keep every token: slots are what is kept, positions are what was seen.

Legend: B batch, H query heads, Hkv KV heads, Q queries, N slots, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.attention import Logits
from keyhole.cache.decode_step import StepBudget, StepReader
from keyhole.cache.layer import LayerCache, under
from keyhole.cache.prompted import Prompted
from keyhole.cache.request import Request
from keyhole.core.layout import packed_slots
from keyhole.core.masks import Visible
from keyhole.core.needs import Informed
from keyhole.core.scales import all_finite
from keyhole.prefill import Prefill
from keyhole.retention import Kept, Retention, ScorerInput
from keyhole.selection import Selector
from keyhole.storage import Chosen, Footprint, Merging, Storage


class EvictingLayer(LayerCache):
    """Drops tokens when a prompt, or a piece of it, was attended to, and while decoding if it is to.

    Padding is never kept. What was dropped cannot be read again: after a crop, and for a later question,
    there is what is left. An index is built again after tokens were dropped. What to keep is found by
    causal attention, so other masks than causal with padding on the left are refused.
    """

    def __init__(
        self,
        prefill: Prefill,
        storage: Storage,
        retention: Retention,
        selector: Selector | None = None,
        *,
        reading: StepBudget | None = None,
        request: Request | None = None,
        place: int = 0,
    ) -> None:
        super().__init__(prefill, storage, selector, reading=reading, request=request, place=place)
        self.retention, self.kept = retention, Kept()
        self._pending = False  # a prompt is waiting for its end
        self._generated = 0  # tokens since some were dropped
        self._scored = 0  # tokens there were when the scorer last saw one

    @property
    def length(self) -> int:
        return self.kept.seen

    @property
    def looks_back(self) -> int | None:
        mine, scorers = super().looks_back, self.retention.scorer.looks_back
        return None if mine is None or scorers is None else max(mine, scorers)

    def expect(self, steps: int) -> None:
        super().expect(steps)
        self.retention.expect(steps)

    def hold_prompts(self) -> None:
        """Drop tokens when a prompt is complete, so that the pieces in which it comes do not matter."""
        self.retention.policy = self.retention.policy._replace(whole_prompt=True)

    def _append(self, keys: Tensor, values: Tensor) -> bool:
        if not (all_finite(keys) and all_finite(values)):
            return False
        batch, heads, tokens, _ = keys.shape
        if self._pending and self.request.generates(tokens):
            self._evict()
        self.storage.append(keys.detach(), values.detach())
        self.kept.append(batch, heads, tokens, keys.device)
        self.retention.scorer.append(batch, heads, tokens, keys.device)
        return True

    def _attend(self, query: Tensor, logits: Logits, seen: Visible) -> Tensor:
        queries = query.shape[2]
        generated = self.request.generates(queries)
        if not seen.causal or (generated and max(seen.padding) == self.length):
            raise ValueError(self._refusal())
        with self._changing():
            if seen.mask is not None:
                self._drop_padding(seen.padding, queries)
            left = Visible(self.kept.mask(queries), len(query))
            if queries > 1 and generated:
                return self._attend_drafts(query, logits, left)
            out = super()._attend(query, logits, left)
            if generated:
                self._count(1)
        return out

    def _attend_drafts(self, query: Tensor, logits: Logits, left: Visible) -> Tensor:
        """Several generated tokens, of which some may be taken back: they read everything that is kept."""
        out = self.prefill.attend(query, self.storage, logits, left.mask)
        if self.retention.policy.every:
            self._show(ScorerInput(query.detach(), self.storage, self.kept, logits, generated=True))
            self._count(query.shape[2])
        return out

    def _count(self, tokens: int) -> None:
        """So many tokens were generated."""
        every = self.retention.policy.every
        if every:
            self._generated += tokens
            if self._generated >= every:
                self._evict()

    def _refusal(self) -> str:
        return (
            f"{self.method} drops tokens by what causal attention gives them, and this attention mask is not "
            "causal with padding on the left only: it hides tokens inside the sequence, or shows later ones "
            "(images, packed documents, trees of drafts, padding on the right). Set "
            "tokenizer.padding_side = 'left', or use a method that keeps every token: dense, or one that "
            "selects, as quest does"
        )

    def take(self, other: LayerCache, length: int | None = None) -> None:
        super().take(other, length)
        if self._pending:
            with self._changing():
                self._evict()

    def see(self, prompted: Prompted) -> None:
        super().see(prompted)
        queries = self._scored_queries(prompted.queries)
        if queries.shape[2]:
            self._show(ScorerInput(queries, self.storage, self.kept, prompted.logits))
        self._pending = True
        if not self.retention.policy.whole_prompt:
            self._evict()

    def _scored_queries(self, queries: Tensor) -> Tensor:
        """Those of a piece of a prompt that what is kept may depend on, where it is known which these are."""
        back, end = self.retention.scorer.looks_back, self.request.prompt_length
        if back is None or end is None or not self.retention.policy.whole_prompt:
            return queries
        return queries[:, :, max(end - back - (self.length - queries.shape[2]), 0) :]

    def _show(self, seen: ScorerInput) -> None:
        self.retention.scorer.see(seen)
        self._scored = self.length

    def _wants_all(self, reader: StepReader) -> bool:
        # Selectors take heads of one length; a crop into what was dropped from can leave others. Else a step
        # reads by selection where the budget of any row asks for it.
        return self.kept.uneven or reader.wants_all(self.storage.length, min(self.kept.context), self._batch)

    def text_positions(self, seen: Visible) -> Tensor:  # noqa: ARG002
        padding = torch.tensor(self.kept.padding).view(-1, 1, 1)
        return (self.kept.positions.cpu().long() - padding).clamp(min=-1)

    def _record_all(self, seen: Visible) -> None:  # noqa: ARG002
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
        self._show(ScorerInput(query, self.storage, self.kept, logits, weights, generated=True))
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

    def _keep(self, chosen: Chosen, into: Merging | None = None) -> None:
        self.storage.keep(chosen, into)
        self.kept.keep(chosen)
        self.retention.scorer.keep(chosen)
        if into is not None:
            self.retention.scorer.rewritten()
        if self.selector is not None:
            self.selector.crop(0)

    @property
    def _parts(self) -> list[Informed]:
        return [*super()._parts, self.retention.scorer]

    @property
    def _context(self) -> tuple[int, ...]:
        return self.kept.context

    def _prepare(self, seen: Visible) -> None:
        """As in every layer cache; what the next step would drop goes now."""
        if not seen.causal:
            raise ValueError(self._refusal())
        with self._changing():
            if seen.mask is not None:
                self._drop_padding(seen.padding, 1)
            if self._pending:
                self._evict()
            super()._prepare(Visible(self.kept.mask(1), len(self.kept.padding)))

    def crops_exactly(self, length: int) -> bool:
        return length == 0

    def _crop(self, length: int) -> None:
        if length == 0:
            super()._crop(0)
            self.retention.scorer.clear()
            self.kept.clear()
            self._pending, self._generated, self._scored = False, 0, 0
        elif length < self.length:
            # Tokens that the scorer has not seen are not its to forget.
            self.retention.scorer.crop(max(self._scored - length, 0))
            self._scored = min(self._scored, length)
            self._prompted.crop(length)
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
        self._crop_slots(left)
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
        held = super().state() | {"due": torch.tensor([self._pending, self._generated, self._scored])}
        held |= {f"kept.{name}": tensor for name, tensor in self.kept.state().items()}
        return held | {f"scorer.{name}": tensor for name, tensor in self.retention.scorer.state().items()}

    def restore(self, state: dict[str, Tensor], indexed: int) -> None:
        super().restore(state, indexed)
        pending, self._generated, self._scored = state["due"].tolist()
        self._pending = bool(pending)
        self.kept.restore(under("kept.", state))
        self.retention.scorer.restore(under("scorer.", state))
        if self.kept.slots < self.kept.seen and self.selector is not None and not indexed:
            self.selector.crop(0)  # queries of a prompt say nothing of slots that were moved since
