"""Page boxes (Quest): the least and greatest key of each page, channel by channel, bound its logits.

Source: "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", arXiv 2406.10774.

Legend: B batch, Hkv KV heads, G query heads of each, T tokens, P pages, D head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole import kernels
from keyhole.kernels.pq_tables import softcapped
from keyhole.regions import Regions
from keyhole.selection.base import Selection, Selector, Step
from keyhole.selection.pages import page_count, pick_pages, spans
from keyhole.storage.buffer import GrowingBuffer

_CHUNK = 8192  # tokens put into boxes at a time, to bound temporary memory
_ABOVE_MIDDLE = 0.5  # measured on the keys of the embedded model: 0.4 to 0.65 in the mean of a layer


class BoxSelector(Selector):
    """Ranks pages of `page` slots by the greatest logit that a key within their box can have.

    The query heads of a group agree on pages by the mean of their softmaxes over the bounds. The mass of a
    page, for mass budgets and for reports, is estimated from both ends of its logits; see `_log_masses`.
    """

    def __init__(self, page: int) -> None:
        self.page = page
        # `[B, Hkv, P, 2 * D]`: greatest, then least. A page of which no slot counts is a box inside out.
        self._boxes = GrowingBuffer()
        self._first: Tensor | None = None  # int32 `[B]`: padding and sinks are left out of the boxes

    def build(self, keys: Tensor, regions: Regions) -> None:
        # A copy: layers are given one tensor, and what each states is to be saved apart.
        self._boxes, self._first, self.length = GrowingBuffer(), regions.first.clone(), 0
        self.append(keys)

    def append(self, keys: Tensor) -> None:
        for part in keys.split(_CHUNK, dim=2):
            self._add(part)

    def _add(self, keys: Tensor) -> None:
        whole, begun = divmod(self.length, self.page)
        slots = torch.arange(self.length, self.length + keys.shape[2], device=keys.device)
        unused = slots < self._built().view(-1, 1)
        boxes = _boxes(keys, unused.view(-1, 1, len(slots), 1), begun, self.page)
        if begun:
            (greatest, least), old = boxes[:, :, 0].chunk(2, -1), self._boxes.view()[:, :, whole].chunk(2, -1)
            boxes[:, :, 0] = torch.cat([greatest.maximum(old[0]), least.minimum(old[1])], -1)
        self._boxes.crop(whole)
        self._boxes.append(boxes)
        self.length += keys.shape[2]

    def select(self, step: Step) -> Selection:
        upper, lower = self._bounds(step)
        _, sizes = spans(step.regions, self.page)
        sizes = sizes.view(len(sizes), 1, 1, -1)
        upper = upper.masked_fill(sizes == 0, -torch.inf)
        logs = _log_masses(upper, lower, sizes, step.query.shape[-1])
        anchor = step.anchor_lse.view(upper.shape[:3])
        total = torch.logaddexp(logs.logsumexp(-1), anchor)
        shares = (logs - total.unsqueeze(-1)).exp().mean(2)
        # As logarithms: bounds lie far apart, and shares of zero would be ties.
        scores = upper.log_softmax(-1).logsumexp(2)
        return pick_pages(scores, shares, (anchor - total).exp().mean(2), step, self.page)

    def _bounds(self, step: Step) -> tuple[Tensor, Tensor]:
        """The greatest and the least logit of a key in each box, float32 `[B, Hkv, G, P]`."""
        boxes = self._boxes.view()
        query = step.query.unflatten(1, (boxes.shape[1], -1)).float()
        positive, negative = query.clamp(min=0), query.clamp(max=0)
        greatest, least = torch.cat([positive, negative], -1), torch.cat([negative, positive], -1)
        both = torch.cat([greatest, least], dim=2).flatten(0, 1)
        pages = page_count(step.regions, self.page)
        bounds = kernels.exact_scores(both, boxes.flatten(0, 1), 0, pages, scale=step.logits.scale)
        upper, lower = softcapped(bounds, step.logits.softcap).unflatten(0, boxes.shape[:2]).chunk(2, dim=2)
        return upper, lower

    def bytes_read(self, step: Step) -> int:
        return page_count(step.regions, self.page) * self._boxes.view()[0, 0, 0].nbytes

    def crop(self, length: int) -> None:
        # A box cannot be made smaller: a page that is cut is given up, and filled anew from what is stored.
        if length < self.length:
            self.length = length // self.page * self.page
            self._boxes.crop(length // self.page)

    def reorder(self, rows: Tensor) -> None:
        if self._first is not None:
            self._boxes.reorder(rows)
            self._first = self._first.index_select(0, rows.to(self._first.device))

    def state(self) -> dict[str, Tensor]:
        return {} if self.length == 0 else {"boxes": self._boxes.view(), "first": self._built()}

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        super().restore(state, length)
        self._boxes, self._first = GrowingBuffer(), state.get("first")
        if state:
            self._boxes.append(state["boxes"])

    @property
    def nbytes(self) -> int:
        return self._boxes.nbytes

    def _built(self) -> Tensor:
        if self._first is None:
            raise ValueError("there are no page boxes yet; call build first")
        return self._first


def _boxes(keys: Tensor, unused: Tensor, begun: int, page: int) -> Tensor:
    """Boxes `[B, Hkv, P, 2 * D]` of `keys [B, Hkv, T, D]`, the first page lacking its `begun` first slots."""
    far = torch.finfo(keys.dtype).max
    ends = (0, 0, begun, -(begun + keys.shape[2]) % page)
    greatest = F.pad(keys.masked_fill(unused, -far), ends, value=-far).unflatten(2, (-1, page)).amax(3)
    least = F.pad(keys.masked_fill(unused, far), ends, value=far).unflatten(2, (-1, page)).amin(3)
    return torch.cat([greatest, least], dim=-1)


def _log_masses(upper: Tensor, lower: Tensor, sizes: Tensor, channels: int) -> Tensor:
    """Logarithm of each page's estimated sum of exp(logit), float32 `[B, Hkv, G, P]`.

    Keys do not reach the corners of their box: the more channels there are, the closer logits stay to the
    middle of their bounds. The mean of exp(logit) is higher by `_ABOVE_MIDDLE / sqrt(D)` of their distance.
    """
    middle = (upper + lower) / 2 + (upper - lower) * (_ABOVE_MIDDLE * channels**-0.5)
    return middle.masked_fill(sizes == 0, -torch.inf) + sizes.clamp(min=1).log()
