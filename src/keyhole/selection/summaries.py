"""Indexes that keep one summary for each page of keys.

Legend: B batch, Hkv KV heads, T tokens, P pages, D head size, W size of a summary.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.core.layout import Regions
from keyhole.selection.base import Capturable, Selection, Step
from keyhole.selection.mass_control import Estimate, MassControl
from keyhole.selection.picking.pages import page_count, pick_pages
from keyhole.storage import CapturableStorage, GrowingBuffer

_CHUNK = 8192  # tokens summarised at a time, to bound temporary memory


class Rows(Protocol):
    """What holds summaries `[B, Hkv, P, W]`; see `GrowingBuffer`."""

    @property
    def length(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def append(self, rows: Tensor) -> None: ...

    def view(self, start: int = 0) -> Tensor: ...

    def reserve(self, rows: int) -> None: ...

    def extend(self, length: int) -> None: ...

    def put(self, rows: Tensor, places: Tensor) -> None: ...

    def crop(self, length: int) -> None: ...

    def reorder(self, rows: Tensor) -> None: ...


class SummarySelector(Capturable):
    """Ranks pages of `page` slots by their summaries. Padding and sinks are left out of these.

    A page of None is `_default_page` of the keys.

    Subclasses say what a summary is, by `_summarised` and `_joined`, and rank by `_estimate`.
    """

    def __init__(self, page: int | None) -> None:
        self.page = page or 0
        self._summaries = self._buffer()  # `[B, Hkv, P, W]`
        self._first: Tensor | None = None  # int32 `[B]`
        self._mass_control = MassControl()
        self._latest: Tensor | None = None  # `[B, Hkv, W]`, of the newest page, as it was before `_rounded`
        self._begun = torch.empty(0)  # `[B, Hkv, 1 or 0, W]`, of a page that was not whole at `reserve`

    @staticmethod
    def _buffer() -> Rows:
        """What holds summaries."""
        return GrowingBuffer()

    @abstractmethod
    def _summarised(self, keys: Tensor, counted: Tensor, begun: int) -> Tensor:
        """Summaries `[B, Hkv, P, W]` of `keys [B, Hkv, T, D]` where `counted [B, T]`.

        The first page lacks its `begun` first slots, which came before; pages may have no slot that counts.
        """

    def _rounded(self, summaries: Tensor) -> Tensor:
        """Summaries as they are held, which those of a page in parts are not made of."""
        return summaries

    @abstractmethod
    def _joined(self, former: Tensor, latter: Tensor) -> Tensor:
        """The summaries `[B, Hkv, W]` of pages, of those of their two parts."""

    @abstractmethod
    def _estimate(self, step: Step) -> Estimate:
        """How the competing pages rank, and the attention that is on them."""

    def select(self, step: Step) -> Selection:
        reach = self._mass_control.reach(step, self._estimate)
        found = self._estimate(step)
        if reach is None:
            picked = pick_pages(found.scores, found.shares, found.anchored, step, self.page)
            return self._mass_control.told(picked, step, self._estimate)
        picked = pick_pages(found.scores, found.shares, found.anchored, step, self.page, reach.share)
        return picked._replace(mass=reach.held(picked.mass))

    def _by_page(self, values: Tensor) -> Tensor:
        """Sums `[B, Hkv, P]` of `values [B, Hkv, N]` of slots."""
        return F.pad(values, (0, -values.shape[-1] % self.page)).unflatten(-1, (-1, self.page)).sum(-1)

    def see(self, queries: Tensor, kv_heads: int, tokens: int) -> None:  # noqa: ARG002
        self._mass_control.see(queries, tokens)

    # Only for indexes whose page may be None.
    @staticmethod
    def _default_page(head_dim: int) -> int:
        """Slots of a page where they are not given."""
        raise NotImplementedError

    @staticmethod
    def _head_dim(width: int) -> int:
        """D, of the size of a summary."""
        raise NotImplementedError

    def build(self, keys: Tensor, regions: Regions) -> None:
        self.page = self.page or self._default_page(keys.shape[-1])
        # A copy: layers are given one tensor, and what each states is to be saved apart.
        self._summaries, self._first, self.length = self._buffer(), regions.first.clone(), 0
        self.append(keys)

    def append(self, keys: Tensor) -> None:
        for part in keys.split(_CHUNK, dim=2):
            self._add(part)

    def _add(self, keys: Tensor) -> None:
        whole, begun = divmod(self.length, self.page)
        slots = torch.arange(self.length, self.length + keys.shape[2], device=keys.device)
        summaries = self._summarised(keys, slots >= self._starts().view(-1, 1), begun)
        if begun:
            summaries[:, :, 0] = self._joined(self._unfinished(), summaries[:, :, 0])
        self._summaries.crop(whole)
        self._summaries.append(self._rounded(summaries))
        if summaries.shape[2]:
            self._latest = summaries[:, :, -1].clone()
        self.length += keys.shape[2]

    def reserve(self, tokens: int) -> None:
        self._mass_control.captured = True
        whole, pages = self.length // self.page, -(-tokens // self.page)
        begun = self._unfinished().unsqueeze(2) if self.length % self.page else self._summaries.view(whole)
        self._begun = begun.clone()
        self._summaries.reserve(pages)
        self._summaries.extend(pages)

    def place(self, storage: CapturableStorage, slot: Tensor) -> None:
        # All of its page that came since `reserve`: what was joined to a summary cannot be taken back.
        number = slot.clamp(min=self.length) // self.page
        slots = number * self.page + torch.arange(self.page, device=slot.device)
        came = (slots >= self.length) & (slots <= slot) & (slots >= self._starts().view(-1, 1))
        held = storage.keys_at(slots.clamp(max=storage.length - 1))
        summary = self._summarised(held, came, 0)
        if self._begun.shape[2]:
            joined = self._joined(self._begun.squeeze(2), summary.squeeze(2)).unsqueeze(2)
            summary = joined.where(number == self.length // self.page, summary)
        self._summaries.put(self._rounded(summary), number)

    def release(self, length: int) -> None:
        self._mass_control.captured = False
        # A page that is not whole may have been summarised with tokens that were taken back.
        self.length = length // self.page * self.page
        self._summaries.crop(length // self.page)

    def bytes_read(self, step: Step) -> int:
        summaries = page_count(step.regions, self.page) * self._page_bytes()
        return summaries + self._mass_control.bytes_read(step)

    def _page_bytes(self) -> int:
        """Bytes of a summary, for one KV head."""
        held = self._summaries.view()
        return held.shape[-1] * held.element_size()

    def crop(self, length: int) -> None:
        # A summary cannot be made smaller: a page that is cut is dropped and summarised again from its keys.
        if length < self.length:
            self.length = length // self.page * self.page
            self._summaries.crop(length // self.page)
        self._mass_control.crop(length)

    def reorder(self, rows: Tensor) -> None:
        if self._first is not None:
            self._summaries.reorder(rows)
            self._mass_control.reorder(rows)
            self._first = self._first.index_select(0, rows.to(self._first.device))
            if self._latest is not None:
                self._latest = self._latest.index_select(0, rows.to(self._latest.device))

    def state(self) -> dict[str, Tensor]:
        if self.length == 0:
            return {}
        held = {"summaries": self._summaries.view(), "first": self._starts(), "latest": self._unfinished()}
        return held | self._mass_control.state()

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        super().restore(state, length)
        self._summaries, self._first = self._buffer(), state.get("first")
        self._latest = state.get("latest")
        self._mass_control.restore(state)
        if state:
            self._summaries.append(state["summaries"])
            self.page = self.page or self._default_page(self._head_dim(state["summaries"].shape[-1]))

    @property
    def nbytes(self) -> int:
        return self._summaries.nbytes + self._mass_control.nbytes

    def _unfinished(self) -> Tensor:
        if self._latest is None:
            raise ValueError("no page has a summary yet; call build first")
        return self._latest

    def _starts(self) -> Tensor:
        """The first slot of each batch row that counts, int32 `[B]`."""
        if self._first is None:
            raise ValueError("no page has a summary yet; call build first")
        return self._first
