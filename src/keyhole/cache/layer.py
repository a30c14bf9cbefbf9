"""The run-time state of one attention layer for one batch: what is stored, what is indexed, what was read.

Legend: B batch, H query heads, Hkv KV heads, Q queries, N cached tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from keyhole.attention import Logits, add_sink_logits
from keyhole.cache.base import Observation, Observer
from keyhole.cache.decode_step import Read, StepBudget, StepReader
from keyhole.cache.listening import LayerRead
from keyhole.cache.prompted import SHOWN, Prompted, PromptQueries
from keyhole.cache.request import Request
from keyhole.cache.usage import Usage
from keyhole.core.autograd import outside_inference_mode
from keyhole.core.budget import Budget
from keyhole.core.errors import NonFiniteError
from keyhole.core.masks import Visible
from keyhole.core.needs import Informed, Needs
from keyhole.core.scales import all_finite
from keyhole.prefill import DensePrefill, Prefill
from keyhole.selection import Selector
from keyhole.storage import Footprint, Storage


class LayerCache:
    """One layer's answers to the questions of what to compute, where to place and what to read, at work.

    Attributes:
        request: what the layers of one cache share.
        place: the layer's place among them.
        remember: newest queries of a prompt that are held for layer caches that `take` from this one.
        method: the method's name in messages.
    """

    def __init__(
        self,
        prefill: Prefill,
        storage: Storage,
        selector: Selector | None = None,
        *,
        reading: StepBudget | None = None,
        request: Request | None = None,
        place: int = 0,
    ) -> None:
        self.prefill, self.storage, self.selector = prefill, storage, selector
        self.reading = reading
        self.request, self.place = Request() if request is None else request, place
        self._reader: StepReader | None = None
        if selector is not None and reading is not None:
            self._reader = StepReader(selector, reading, self.request, place)
        self.usage = Usage()
        self.remember = SHOWN
        self.method = "the method"
        self._prompted = PromptQueries()
        self._batch = 1  # sequences, as last appended
        self._torn = False  # a change was begun and not finished
        self._observers: list[Observer] = []

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

    @property
    def looks_back(self) -> int | None:
        """How many of a prompt's newest queries what follows depends on; None is all of them."""
        if Needs.ALL_QUERIES in self.needs:
            return None
        return 0 if self.selector is None else SHOWN

    def expect(self, steps: int) -> None:
        """Take so many decode steps before the next layer takes any, as where an engine repeats some."""
        if self.selector is not None:
            self.selector.expect(steps)

    def crops_exactly(self, length: int) -> bool:
        """Whether a crop to `length` tokens leaves what there was before the later ones came."""
        parts_do = all(part.crops_exactly(length) for part in self._parts)
        return length == 0 or (not self._torn and parts_do)

    def arrive(self, tokens: int, generated: Callable[[], bool | None]) -> None:
        """The model is called with so many tokens; the first layer of a request notes what they are."""
        if self.place == 0:
            self.request.begin(self.length, tokens, generated())

    @outside_inference_mode()
    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add `keys [B, Hkv, T, D]`, after RoPE, and `values [B, Hkv, T, Dv]`.

        Raises:
            NonFiniteError: NaN or infinity among them; nothing is stored then.
            ValueError: they are not of the same tokens, or an earlier call was interrupted halfway.
        """
        if keys.shape[:3] != values.shape[:3]:
            raise ValueError(
                f"keys {list(keys.shape)} and values {list(values.shape)} are of different tokens"
            )
        with self._changing():
            stored = self._append(keys, values)
        if not stored:
            name = "values" if all_finite(keys) else "keys"
            raise NonFiniteError(f"{name} of tokens from {self.length} on hold NaN or infinity")
        self._batch = keys.shape[0]

    def _append(self, keys: Tensor, values: Tensor) -> bool:
        """Whether they are finite; else nothing changes."""
        return self.storage.append_finite(keys, values)

    @outside_inference_mode()
    def attend(self, query: Tensor, logits: Logits, *, mask: Tensor | None = None) -> Tensor:
        """Attention of the newest tokens' `query [B, H, Q, D]` over what is stored; returns `[B, H, Q, Dv]`.

        A prompt's are computed as the method computes prompts; a generated token's reads what the method
        selects, and passes no gradient then.

        Args:
            mask: bool `[B or 1, 1, Q, N]`, true where a query may look; None is causal without padding.

        Raises:
            ValueError: the mask is of other sizes, or shows what the method cannot serve.
        """
        self._check_whole()
        _check_mask(mask, query, self.length)
        return self._attend(query, logits, self.request.look(mask, len(query)))

    def _attend(self, query: Tensor, logits: Logits, seen: Visible) -> Tensor:
        if query.shape[2] > 1 or not self.request.generates(1):
            if self.request.together and self._reader is not None:
                return self._attend_together(self._reader, query, logits, seen)
            return self._attend_prompt(query, logits, seen)
        if self._reader is None or self._wants_all(self._reader):
            return self._read_all(query, logits, seen)
        return self._read(self._reader, query.squeeze(2), logits, seen).unsqueeze(2)

    def _attend_together(self, reader: StepReader, query: Tensor, logits: Logits, seen: Visible) -> Tensor:
        """Attention of the `query [B, H, Q, D]` of a later prompt over one selection, where one pays."""
        before = self.storage.length - query.shape[2]
        plain = seen.causal and seen.hidden is None and max(seen.padding) <= before
        whole = self._wants_all(reader) or reader.wants_all(before + 1, self.length, self._batch)
        if not plain or whole:
            if plain and self.leads:
                reader.watch(reader.electing(query, self.storage), self.storage, logits, seen)
            return self._attend_prompt(query, logits, seen)
        return self._read_together(reader, query, logits, seen)

    @torch.no_grad()
    def _read_together(self, reader: StepReader, query: Tensor, logits: Logits, seen: Visible) -> Tensor:
        read = reader.read_together(query, self.storage, logits, seen, self._context)
        self.usage.record_selection(read, self.storage.token_bytes)
        self.usage.record_lookups(self.storage.lookups)
        self._tell(query, logits, seen, read)
        return add_sink_logits(read.part, logits).out.transpose(1, 2)

    def _attend_prompt(self, query: Tensor, logits: Logits, seen: Visible) -> Tensor:
        """Sparse prompts are made for causal attention; under any other mask they are computed densely."""
        sparse = not self.prefill.any_mask and seen.causal and max(seen.padding) < self.storage.length
        prefill = self.prefill if sparse or self.prefill.any_mask else DensePrefill()
        out = prefill.attend(query, self.storage, logits, None if seen.plain else seen.mask)
        self._tell(query, logits, seen)
        self.see(Prompted(query.detach(), logits))
        return out

    def use_prefill(self, prefill: Prefill) -> None:
        """Compute prompts by another `Prefill` from here on, as those that watch a model do."""
        self.prefill = prefill

    def see(self, prompted: Prompted) -> None:
        """Take note of a prompt's newest queries, which were just attended to; `attend` does so itself."""
        queries = self._prompted.add(prompted, self.length, self.remember)
        if self.selector is not None:
            self.selector.see(queries[:, :, -SHOWN:], self.newest.shape[1], self.storage.length)
        with torch.no_grad():
            for part in self._informed(Needs.ALL_QUERIES):
                part.see_queries(prompted.queries, self.storage)

    @property
    def needs(self) -> Needs:
        """What any part of the layer asks for beside keys, values and the newest queries."""
        return reduce(or_, (part.needs for part in self._parts))

    @outside_inference_mode()
    def see_hidden_states(self, hidden: Tensor) -> None:
        """Show the inputs of attention `hidden [B, T, E]` of tokens that are about to be appended."""
        for part in self._informed(Needs.HIDDEN_STATES):
            part.see_hidden_states(hidden.detach())

    def _informed(self, need: Needs) -> list[Informed]:
        return [part for part in self._parts if need in part.needs]

    @property
    def _parts(self) -> list[Informed]:
        """Those that may ask for something."""
        return [self.storage] if self.selector is None else [self.storage, self.selector]

    def take(self, other: LayerCache, length: int | None = None) -> None:
        """Hold what another layer cache holds, as if its tokens, and its prompt's queries, had come here.

        Args:
            length: take the first so many of its tokens only.
        """
        self.append(other.storage.keys()[:, :, :length], other.storage.values()[:, :, :length])
        prompted = other._prompted.before(length)
        if prompted is not None:
            self.see(prompted)

    def use_budget(self, budget: Budget) -> None:
        """Read by another budget from the next step on; the index stays as it is.

        Raises:
            ValueError: the layer reads everything, whatever the budget.
        """
        if self._reader is None:
            raise ValueError(f"{self.method} has no budget of what a step reads; give a method that selects")
        self.reading = self._reader.reading = self._reader.reading._replace(budget=budget)

    @property
    def selects(self) -> bool:
        """Whether a step would read a selection now, and not everything."""
        return self._reader is not None and not self._wants_all(self._reader)

    @property
    def leads(self) -> bool:
        """Whether others read by a step of this layer, which is read whole itself."""
        return self._reader is not None and self._reader.leads(self.length, self._batch)

    def _wants_all(self, reader: StepReader) -> bool:
        return reader.wants_all(self.storage.length, self.length, self._batch)

    def _read_all(self, query: Tensor, logits: Logits, seen: Visible) -> Tensor:
        """Attention of `query [B, H, 1, D]` over all that is stored."""
        self._record_all(seen)
        if self._reader is not None and self.leads:
            self._reader.watch(query.squeeze(2), self.storage, logits, seen)
        self._tell(query, logits, seen)
        return self._attend_all(query, logits, seen.mask)

    def _record_all(self, seen: Visible) -> None:
        unused = sum(seen.padding) + (0 if seen.hidden is None else int(seen.hidden.sum()))
        tokens = self.length - unused / seen.batch
        self.usage.record_everything(tokens, tokens, self.storage.token_bytes)

    def _attend_all(self, query: Tensor, logits: Logits, mask: Tensor | None) -> Tensor:
        return self.storage.attend_all(query, logits, mask)

    @torch.no_grad()
    def _read(self, reader: StepReader, query: Tensor, logits: Logits, seen: Visible) -> Tensor:
        """Attention of `query [B, H, D]` over a selection."""
        read = reader.read(query, self.storage, logits, seen, self._context)
        self.usage.record_selection(read, self.storage.token_bytes)
        self.usage.record_lookups(self.storage.lookups)
        for observer in self._observers:
            observer(Observation(query, self.storage, read, logits))
        self._tell(query.unsqueeze(2), logits, seen, read)
        return add_sink_logits(read.part, logits).out

    @property
    def _context(self) -> tuple[int, ...] | None:
        """Tokens each batch row has seen, where that is not what it holds."""
        return None

    def _tell(self, query: Tensor, logits: Logits, seen: Visible, read: Read | None = None) -> None:
        if self.request.listener is not None:
            self.request.listener(LayerRead(self, query.detach(), logits, seen, read))

    def text_positions(self, seen: Visible) -> Tensor:
        """Where the token of each slot is in its row's text, int64 `[B, 1 or Hkv, N]`; negative: no token."""
        padding = torch.tensor(seen.padding).view(-1, 1, 1)
        positions = torch.arange(self.storage.length) - padding
        return positions if seen.hidden is None else positions.masked_fill(seen.hidden.cpu().unsqueeze(1), -1)

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call `observer` after each step that reads a selection, until what is returned is called."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    @contextmanager
    def observed(self) -> Iterator[list[Observation]]:
        """The steps that read a selection inside a with-block."""
        seen: list[Observation] = []
        stop = self.observe(seen.append)
        try:
            yield seen
        finally:
            stop()

    def crop(self, length: int) -> None:
        """Forget the tokens from `length` on; all of them, where a call was interrupted halfway.

        Raises:
            ValueError: a negative length, or a call was interrupted and tokens are to be left.
        """
        if length < 0:
            raise ValueError(f"cannot crop to {length} tokens; give 0 or more")
        if length:
            self._check_whole()
        with self._changing(restart=length == 0):
            self._crop(length)

    def _crop(self, length: int) -> None:
        self._crop_slots(length)
        self._prompted.crop(length)

    def _crop_slots(self, slots: int) -> None:
        self.storage.crop(slots)
        if self.selector is not None:
            self.selector.crop(slots)

    @outside_inference_mode()
    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order, repeats and omissions allowed (beam search)."""
        if self.length:
            with self._changing():
                self._reorder(rows)

    def _reorder(self, rows: Tensor) -> None:
        self.storage.reorder(rows)
        if self.selector is not None:
            self.selector.reorder(rows)
        self._prompted.reorder(rows)

    @contextmanager
    def _changing(self, *, restart: bool = False) -> Iterator[None]:
        """A change of several parts: if it is interrupted, the layer refuses to go on from what is left."""
        if not restart:
            self._check_whole()
        self._torn = True
        yield
        self._torn = False

    def _check_whole(self) -> None:
        if self._torn:
            raise ValueError(
                "an earlier call was interrupted while this layer was changing, so that its parts do not "
                "fit; start with a new cache, or crop this one to 0 tokens"
            )

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
        self._check_whole()
        held = {f"storage.{name}": tensor for name, tensor in self.storage.state().items()}
        return held | self.rest()

    def rest(self) -> dict[str, Tensor]:
        """The `state` of everything but the storage, which `resume` takes."""
        held = {f"prompted.{name}": tensor for name, tensor in self._prompted.state().items()}
        if self.selector is not None:
            held |= {f"selector.{name}": tensor for name, tensor in self.selector.state().items()}
        return held

    def resume(self, storage: Storage, state: dict[str, Tensor], indexed: int) -> None:
        """As `restore`, with keys and values that are in a storage already.

        The newest queries are shown to the index again, so that it goes on as the one that was saved.
        """
        self.storage = storage
        self._prompted.restore(under("prompted.", state))
        if self._prompted.held is not None and self.selector is not None:
            queries = self._prompted.held.queries[:, :, -SHOWN:]
            self.selector.see(queries, self.newest.shape[1], self._prompted.end)
        if self.selector is not None and indexed:
            self.selector.restore(under("selector.", state), indexed)

    def restore(self, state: dict[str, Tensor], indexed: int) -> None:
        """Take over a `state`, of which `indexed` tokens were in the index."""
        self.storage.restore(under("storage.", state))
        if self.selector is not None:
            self.selector.restore(under("selector.", state), indexed)
        self._prompted.restore(under("prompted.", state))
        if self._prompted.held is not None and self.selector is not None and not indexed:
            queries = self._prompted.held.queries[:, :, -SHOWN:]
            self.selector.see(queries, self.newest.shape[1], self._prompted.end)

    @outside_inference_mode()
    def prepare(self, mask: Tensor | None = None) -> None:
        """Bring the index up to date now, before the next step asks: the prompt is complete.

        Args:
            mask: as in `attend`, for one query.
        """
        self._check_whole()
        if not self.length:
            return
        if self.place == 0:
            self.request.prompt_length = self.length
        self._prepare(self.request.look(mask, len(self.newest)))

    def _prepare(self, seen: Visible) -> None:
        if self._reader is not None and self.selects:
            self._reader.index(self.storage, seen, self._context)


def _check_mask(mask: Tensor | None, query: Tensor, length: int) -> None:
    if mask is None:
        return
    batch, _, queries, _ = query.shape
    rows, heads, *last = mask.shape
    if rows not in (1, batch) or heads != 1 or last != [queries, length]:
        raise ValueError(
            f"an attention mask of {list(mask.shape)} does not match {queries} queries of {batch} "
            f"sequences over {length} cached tokens; give one of [{batch}, 1, {queries}, {length}], the same "
            "for all heads"
        )


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
