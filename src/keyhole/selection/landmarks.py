"""Landmarks (ShadowKV): the mean key of each chunk stands for its tokens, but for those of outlier chunks.

Source: "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference", arXiv 2410.21465.

Legend: B batch, Hkv KV heads, G query heads of each, T tokens, P chunks, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.core.casts import saturated
from keyhole.core.layout import Regions
from keyhole.kernels.pq.tables import softcapped
from keyhole.selection.base import Step
from keyhole.selection.mass_control import Estimate
from keyhole.selection.picking.pages import page_count, spans
from keyhole.selection.picking.rank import group_shares
from keyhole.selection.summaries import SummarySelector
from keyhole.storage.chunks import chunk_sums, default_chunk, outlier_chunks

_OUTLIERS_SHARE = 4  # outliers take at most a quarter of a budget; in the paper 48 of 304 chunks


class LandmarkSelector(SummarySelector):
    """Reads outlier chunks, then the chunks whose landmarks some query head of the group attends to most.

    A summary is the sum of a chunk's keys: sums can be added to, unlike means.

    Args:
        chunk: slots of a chunk; None is `default_chunk` of the keys.
        outliers: chunks of the prompt read before others, for each KV head.
        dtype: of sums; bfloat16 has the range of float32, and three digits rank as well.
    """

    def __init__(self, chunk: int | None, outliers: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(chunk)
        self.outliers, self.dtype = outliers, dtype
        self._apart: Tensor | None = None  # int64 `[B, Hkv, outliers]`, worst first, -1 for none

    def build(self, keys: Tensor, regions: Regions) -> None:
        super().build(keys, regions)
        self._apart = outlier_chunks(keys, regions, self.page, self.outliers)

    @staticmethod
    def _default_page(head_dim: int) -> int:
        return default_chunk(head_dim)

    @staticmethod
    def _head_dim(width: int) -> int:
        return width

    def _summarised(self, keys: Tensor, counted: Tensor, begun: int) -> Tensor:
        return chunk_sums(keys, counted, begun, self.page)

    def _joined(self, former: Tensor, latter: Tensor) -> Tensor:
        return former + latter

    def _rounded(self, summaries: Tensor) -> Tensor:
        return saturated(summaries, self.dtype)

    def _estimate(self, step: Step) -> Estimate:
        _, sizes = spans(step.regions, self.page)
        sizes = sizes.view(len(sizes), 1, 1, -1)
        logits = self._logits(step).masked_fill(sizes == 0, -torch.inf)
        shares, anchored = group_shares(logits + sizes.log(), step)
        forced = self._forced(step, logits.shape[-1]) & (sizes > 0).squeeze(2)
        rivals = logits.masked_fill(forced.unsqueeze(2), -torch.inf)
        # As logarithms: shares may be too small to tell apart.
        scores = rivals.log_softmax(-1).amax(2).masked_fill(forced, torch.inf)
        return Estimate(scores, shares, anchored, self._by_page)

    def _logits(self, step: Step) -> Tensor:
        """Those of the landmarks, float32 `[B, Hkv, G, P]`."""
        sums, pages = self._summaries.view(), page_count(step.regions, self.page)
        query = step.query.unflatten(1, (sums.shape[1], -1)).float().flatten(0, 1)
        products = kernels.exact_scores(query, sums.flatten(0, 1), 0, pages, scale=step.logits.scale)
        begins = torch.arange(0, pages * self.page, self.page, device=sums.device)
        indexed = step.regions.stop.clamp(min=self.length).unsqueeze(1)
        ends = (begins + self.page).minimum(indexed)
        counted = (ends - begins.maximum(self._starts().unsqueeze(1))).clamp(min=1)
        landmarks = products.unflatten(0, sums.shape[:2]) / counted[:, None, None]
        return softcapped(landmarks, step.logits.softcap)

    def _forced(self, step: Step, pages: int) -> Tensor:
        """Outliers that the budget has room for, bool `[B, Hkv, P]`."""
        apart = self._outliers()
        room = step.limits_on_device() // (_OUTLIERS_SHARE * self.page)
        nth = torch.arange(apart.shape[-1], device=apart.device)
        # After a crop, chunks that are whole may lie within the window.
        wanted = (apart >= 0) & (apart < pages) & (nth < room.view(-1, 1, 1))
        forced = torch.zeros(*apart.shape[:2], pages + 1, dtype=torch.bool, device=apart.device)
        return forced.scatter_(-1, apart.masked_fill(~wanted, pages), True)[..., :pages]

    def crop(self, length: int) -> None:
        super().crop(length)
        if self._apart is not None:
            self._apart = self._apart.masked_fill(self._apart >= self._summaries.length, -1)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        if self._apart is not None:
            self._apart = self._apart.index_select(0, rows.to(self._apart.device))

    def state(self) -> dict[str, Tensor]:
        held = super().state()
        return held | {"outliers": self._outliers()} if held else held

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        super().restore(state, length)
        self._apart = state.get("outliers")

    def _outliers(self) -> Tensor:
        if self._apart is None:
            raise ValueError("no outliers are known yet; call build first")
        return self._apart
