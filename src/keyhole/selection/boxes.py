"""Page boxes (Quest): the least and greatest key of each page, channel by channel, bound its logits.

Source: "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", arXiv 2406.10774.

Legend: B batch, Hkv KV heads, G query heads of each, T tokens, P pages, D head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole import kernels
from keyhole.kernels.pq.tables import softcapped
from keyhole.kernels.ranking.box_scores import CodedEnds, Ends, box_scores, boxes_are_native
from keyhole.selection.base import Step
from keyhole.selection.mass_control import Estimate
from keyhole.selection.picking.pages import page_count, spans
from keyhole.selection.picking.rank import group_shares
from keyhole.selection.summaries import SummarySelector

_ABOVE_MIDDLE = 0.5  # measured on the keys of the embedded model: 0.4 to 0.65 in the mean of a layer


def default_page(head_dim: int) -> int:
    """As published, 16, for heads of 128; less for smaller ones, so that boxes take as many bytes."""
    return min(16, max(4, head_dim // 8))


class BoxSelector(SummarySelector):
    """Ranks pages by the greatest logit that a key within their box can have.

    The query heads of a group agree on pages by the mean of their softmaxes over the bounds. The mass of a
    page, for mass budgets and for reports, is estimated from both ends of its logits; see `_log_masses`.
    A summary is the greatest key, then the least. A page of which no slot counts is a box inside out.
    """

    @staticmethod
    def _default_page(head_dim: int) -> int:
        return default_page(head_dim)

    @staticmethod
    def _head_dim(width: int) -> int:
        return width // 2

    def _summarised(self, keys: Tensor, counted: Tensor, begun: int) -> Tensor:
        return torch.cat(box_ends(keys, counted, begun, self.page), dim=-1)

    def _joined(self, former: Tensor, latter: Tensor) -> Tensor:
        (greatest, least), (other_greatest, other_least) = former.chunk(2, -1), latter.chunk(2, -1)
        return torch.cat([greatest.maximum(other_greatest), least.minimum(other_least)], -1)

    def _estimate(self, step: Step) -> Estimate:
        return self._estimated_at_once(step) or self._estimated(step)

    def _estimated_at_once(self, step: Step) -> Estimate | None:
        """By one native call; None where there is none for such queries and boxes.

        Budgets of mass end at the very sums that they were measured by: all queries are answered in one way.
        """
        if step.budget.mass is not None:
            return None
        boxes, parts = self._boxes(step), step.regions
        if boxes is None or not boxes_are_native(step.query, boxes):
            return None
        boxed = box_scores(
            step.query,
            boxes,
            kernels.Paged(parts.first, parts.stop, parts.last, self.page),
            step.anchor_lse,
            kv_heads=self._kv_heads(),
            pages=page_count(parts, self.page),
            spread=_ABOVE_MIDDLE * step.query.shape[-1] ** -0.5,
            scale=step.logits.scale,
            softcap=step.logits.softcap,
        )
        return None if boxed is None else Estimate(*boxed, self._by_page)

    def _boxes(self, step: Step) -> Ends | CodedEnds | None:  # noqa: ARG002
        """The boxes as they are held; None where kernels do not read them so."""
        return Ends(self._summaries.view())

    def _estimated(self, step: Step) -> Estimate:
        upper, lower = self._bounds(step)
        _, sizes = spans(step.regions, self.page)
        sizes = sizes.view(len(sizes), 1, 1, -1)
        upper = upper.masked_fill(sizes == 0, -torch.inf)
        logs = _log_masses(upper, lower, sizes, step.query.shape[-1])
        shares, anchored = group_shares(logs, step)
        # As logarithms: bounds lie far apart, and shares of zero would be ties.
        scores = upper.log_softmax(-1).logsumexp(2)
        return Estimate(scores, shares, anchored, self._by_page)

    def _bounds(self, step: Step) -> tuple[Tensor, Tensor]:
        """The greatest and the least logit of a key in each box, float32 `[B, Hkv, G, P]`."""
        query = step.query.unflatten(1, (self._kv_heads(), -1))
        positive, negative = query.clamp(min=0), query.clamp(max=0)
        greatest, least = torch.cat([positive, negative], -1), torch.cat([negative, positive], -1)
        both = torch.cat([greatest, least], dim=2)
        bounds = self._products(both.flatten(0, 1), page_count(step.regions, self.page), step.logits.scale)
        upper, lower = softcapped(bounds, step.logits.softcap).unflatten(0, both.shape[:2]).chunk(2, dim=2)
        return upper, lower

    def _kv_heads(self) -> int:
        return self._summaries.view().shape[1]

    def _products(self, query: Tensor, pages: int, scale: float) -> Tensor:
        """Scaled products `[R, Q, P]` of `query [R, Q, 2 * D]`, R = B * Hkv, with the ends of boxes."""
        return kernels.exact_scores(query, self._summaries.view().flatten(0, 1), 0, pages, scale=scale)


def box_ends(keys: Tensor, counted: Tensor, begun: int, page: int) -> tuple[Tensor, Tensor]:
    """The greatest and the least of `keys [B, Hkv, T, D]` in each page, `[B, Hkv, P, D]` both.

    Args:
        counted: bool `[B, T]`; a page of which no slot counts is a box inside out.
        begun: slots of the first page that came before.
        page: slots of a page.
    """
    unused, far = ~counted[:, None, :, None], torch.finfo(keys.dtype).max
    ends = (0, 0, begun, -(begun + keys.shape[2]) % page)
    greatest = F.pad(keys.masked_fill(unused, -far), ends, value=-far).unflatten(2, (-1, page)).amax(3)
    least = F.pad(keys.masked_fill(unused, far), ends, value=far).unflatten(2, (-1, page)).amin(3)
    return greatest, least


def _log_masses(upper: Tensor, lower: Tensor, sizes: Tensor, channels: int) -> Tensor:
    """Logarithm of each page's estimated sum of exp(logit), float32 `[B, Hkv, G, P]`.

    Keys do not reach the corners of their box: the more channels there are, the closer logits stay to the
    middle of their bounds. The mean of exp(logit) is higher by `_ABOVE_MIDDLE / sqrt(D)` of their distance.
    """
    middle = (upper + lower) / 2 + (upper - lower) * (_ABOVE_MIDDLE * channels**-0.5)
    return middle.masked_fill(sizes == 0, -torch.inf) + sizes.clamp(min=1).log()
