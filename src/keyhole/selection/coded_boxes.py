"""Page boxes (Quest) whose ends take 4 bits, so that pages of a quarter of the size take as many bytes.

Legend: B batch, Hkv KV heads, G query heads of each, T tokens, P pages, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.core.layout import Regions
from keyhole.kernels.ranking.box_scores import CodedEnds
from keyhole.selection.base import Step
from keyhole.selection.boxes import BoxSelector
from keyhole.selection.quantisers.boxcodes import (
    PackedBoxes,
    encode,
    fit_levels,
    joined,
    level_values,
    parts_of,
)
from keyhole.selection.summaries import Rows

PAGE = 4  # tokens; a box takes as many bytes as one of 16 bits for 16 tokens
_LARGEST = 2.0**16  # bounds beyond are scaled down to it for the scan, which adds integers
_LEAST = 1e-30  # of a bound


class CodedBoxSelector(BoxSelector):
    """`BoxSelector` with boxes as codes of 4 bits, fitted to the keys there are at `build`.

    Boxes are rounded outwards, so bounds hold but for the rounding of the scan (255 steps of the widest
    channel), and for keys that come later and lie more than half of a channel's range beyond it. A summary is
    both codes of each channel, in one byte.
    """

    def __init__(self, page: int | None) -> None:
        super().__init__(page)
        self._levels: Tensor | None = None  # float32 `[B, Hkv, D, 2]`
        # What codes stand for, `[B * Hkv, 2 * D, 16, 1]`, and the largest of it; made when first asked for.
        self._books: tuple[Tensor, float] | None = None

    @staticmethod
    def _default_page(head_dim: int) -> int:  # noqa: ARG004
        return PAGE

    @staticmethod
    def _head_dim(width: int) -> int:
        return width

    @staticmethod
    def _buffer() -> Rows:
        return PackedBoxes()

    def build(self, keys: Tensor, regions: Regions) -> None:
        slots = torch.arange(keys.shape[2], device=keys.device)
        self._levels, self._books = fit_levels(keys, slots >= regions.first.view(-1, 1)), None
        super().build(keys, regions)

    def _summarised(self, keys: Tensor, counted: Tensor, begun: int) -> Tensor:
        greatest, least = super()._summarised(keys, counted, begun).chunk(2, -1)
        return encode(greatest, least, self._fitted())

    def _joined(self, former: Tensor, latter: Tensor) -> Tensor:
        return joined(former, latter)

    def _kv_heads(self) -> int:
        return self._fitted().shape[1]

    def _page_bytes(self) -> int:
        return self._fitted().shape[2]

    def _boxes(self, step: Step) -> CodedEnds | None:
        boxes, size = self._summaries, self._fitted().shape[2]
        assert isinstance(boxes, PackedBoxes)
        if parts_of(size) > 1:
            return None
        if self._books is None:
            levels = level_values(self._fitted())
            self._books = levels.flatten(2, 3).flatten(0, 1).unsqueeze(-1), float(levels.abs().max())
        books, most = self._books
        return CodedEnds(books, boxes.codes, _LARGEST / max(most * 2 * size * step.logits.scale, _LEAST))

    def _products(self, query: Tensor, pages: int, scale: float) -> Tensor:
        batch, heads, size = self._fitted().shape[:3]
        levels = level_values(self._fitted())
        reach = query.abs().amax((1, 2)) * levels.abs().flatten(2).amax(-1).flatten() * (2 * size * scale)
        factor = (_LARGEST / reach.double()).clamp(max=1.0).float().view(-1, 1, 1)
        # Channel by channel, the number for its upper end and that for its lower one.
        asked = query.float().unflatten(-1, (2, size)).transpose(-1, -2) * factor.unsqueeze(-1)
        parts = parts_of(size)
        asked = asked.unflatten(2, (parts, -1)).transpose(1, 2).flatten(0, 1).flatten(-2)
        books = levels.flatten(2, 3).unflatten(2, (parts, -1)).flatten(0, 2).unsqueeze(-1)
        boxes = self._summaries
        assert isinstance(boxes, PackedBoxes)
        bounds = kernels.pq_scores(asked, books, boxes.codes, pages, scale=scale)
        return bounds.unflatten(0, (batch * heads, parts)).sum(1) / factor

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self._books = None
        if self._levels is not None:
            self._levels = self._levels.index_select(0, rows.to(self._levels.device))

    def state(self) -> dict[str, Tensor]:
        held = super().state()
        return held | {"levels": self._fitted()} if held else held

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        super().restore(state, length)
        self._levels, self._books = state.get("levels"), None

    def bytes_read(self, step: Step) -> int:
        return super().bytes_read(step) + self._fitted()[0, 0].nbytes

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self._levels is None else self._levels.nbytes)

    def _fitted(self) -> Tensor:
        if self._levels is None:
            raise ValueError("no box has levels yet; call build first")
        return self._levels
