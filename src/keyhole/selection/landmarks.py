"""Landmarks (ShadowKV): the mean key of each chunk stands for its tokens, but for those of outlier chunks.

Source: "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference", arXiv 2410.21465.

Legend: B batch, Hkv KV heads, G query heads of each, T tokens, P chunks, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.chunks import chunk_sums, outlier_chunks
from keyhole.kernels.pq_tables import softcapped
from keyhole.regions import Regions
from keyhole.selection.base import Selection, Selector, Step
from keyhole.selection.pages import page_count, pick_pages, spans
from keyhole.storage.buffer import GrowingBuffer

_CHUNK = 8192  # tokens put into sums at a time, to bound temporary memory
_OUTLIERS_SHARE = 4  # outliers take at most a quarter of a budget; in the paper 48 of 304 chunks


class LandmarkSelector(Selector):
    """Reads outlier chunks, then the chunks whose landmarks some query head of the group attends to most.

    Args:
        chunk: slots of a chunk.
        outliers: chunks of the prompt read before others, for each KV head.
    """

    def __init__(self, chunk: int, outliers: int) -> None:
        self.chunk, self.outliers = chunk, outliers
        self._sums = GrowingBuffer()  # float32 `[B, Hkv, P, D]`: sums can be added to, unlike means
        self._first: Tensor | None = None  # int32 `[B]`: padding and sinks are left out
        self._apart: Tensor | None = None  # int64 `[B, Hkv, outliers]`, worst first, -1 for none

    def build(self, keys: Tensor, regions: Regions) -> None:
        # A copy: regions are shared by all layers.
        self._sums, self._first, self.length = GrowingBuffer(), regions.first.clone(), 0
        self._apart = outlier_chunks(keys, regions, self.chunk, self.outliers)
        self.append(keys)

    def append(self, keys: Tensor) -> None:
        for part in keys.split(_CHUNK, dim=2):
            self._add(part)

    def _add(self, keys: Tensor) -> None:
        whole, begun = divmod(self.length, self.chunk)
        slots = torch.arange(self.length, self.length + keys.shape[2], device=keys.device)
        sums = chunk_sums(keys, slots >= self._built(self._first).view(-1, 1), begun, self.chunk)
        if begun:
            sums[:, :, 0] += self._sums.view()[:, :, whole]
        self._sums.crop(whole)
        self._sums.append(sums)
        self.length += keys.shape[2]

    def select(self, step: Step) -> Selection:
        _, sizes = spans(step.regions, self.chunk)
        sizes = sizes.view(len(sizes), 1, 1, -1)
        logits = self._logits(step).masked_fill(sizes == 0, -torch.inf)
        anchor = step.anchor_lse.view(logits.shape[:3])
        logs = logits + sizes.log()
        total = torch.logaddexp(logs.logsumexp(-1), anchor)
        shares = (logs - total.unsqueeze(-1)).exp().mean(2)
        forced = self._forced(step, logits.shape[-1])
        rivals = logits.masked_fill(forced.unsqueeze(2), -torch.inf)
        # As logarithms: shares may be too small to tell apart.
        scores = rivals.log_softmax(-1).amax(2).masked_fill(forced, torch.inf)
        return pick_pages(scores, shares, (anchor - total).exp().mean(2), step, self.chunk)

    def _logits(self, step: Step) -> Tensor:
        """Those of the landmarks, float32 `[B, Hkv, G, P]`."""
        sums, pages = self._sums.view(), page_count(step.regions, self.chunk)
        query = step.query.unflatten(1, (sums.shape[1], -1)).float().flatten(0, 1)
        products = kernels.exact_scores(query, sums.flatten(0, 1), 0, pages, scale=step.logits.scale)
        begins = torch.arange(0, pages * self.chunk, self.chunk, device=sums.device)
        ends = (begins + self.chunk).clamp(max=self.length)
        counted = (ends - begins.maximum(self._built(self._first).unsqueeze(1))).clamp(min=1)
        landmarks = products.unflatten(0, sums.shape[:2]) / counted[:, None, None]
        return softcapped(landmarks, step.logits.softcap)

    def _forced(self, step: Step, pages: int) -> Tensor:
        """Outliers that the budget has room for, bool `[B, Hkv, P]`."""
        apart = self._built(self._apart)
        room = torch.tensor(step.limits(), device=apart.device) // (_OUTLIERS_SHARE * self.chunk)
        nth = torch.arange(apart.shape[-1], device=apart.device)
        # After a crop, chunks that are whole may lie within the window.
        wanted = (apart >= 0) & (apart < pages) & (nth < room.view(-1, 1, 1))
        forced = torch.zeros(*apart.shape[:2], pages + 1, dtype=torch.bool, device=apart.device)
        return forced.scatter_(-1, apart.masked_fill(~wanted, pages), True)[..., :pages]

    def bytes_read(self, step: Step) -> int:
        return page_count(step.regions, self.chunk) * self._sums.view()[0, 0, 0].nbytes

    def crop(self, length: int) -> None:
        # A sum cannot be made smaller: a chunk that is cut is given up, and filled anew from what is stored.
        if length < self.length:
            whole = length // self.chunk
            self.length = whole * self.chunk
            self._sums.crop(whole)
            self._apart = self._built(self._apart).masked_fill(self._built(self._apart) >= whole, -1)

    def reorder(self, rows: Tensor) -> None:
        if self._first is not None:
            rows = rows.to(self._first.device)
            self._sums.reorder(rows)
            self._first = self._first.index_select(0, rows)
            self._apart = self._built(self._apart).index_select(0, rows)

    def state(self) -> dict[str, Tensor]:
        if self.length == 0:
            return {}
        apart = self._built(self._apart)
        return {"sums": self._sums.view(), "first": self._built(self._first), "outliers": apart}

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        super().restore(state, length)
        self._sums, self._first, self._apart = GrowingBuffer(), state.get("first"), state.get("outliers")
        if state:
            self._sums.append(state["sums"])

    @property
    def nbytes(self) -> int:
        return self._sums.nbytes

    def _built(self, tensor: Tensor | None) -> Tensor:
        if tensor is None:
            raise ValueError("there are no landmarks yet; call build first")
        return tensor
