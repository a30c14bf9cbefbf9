"""Clusters of neighbouring tokens in two levels, ranked by one product each (MPCache's dynamic stage).

Source: "MPCache: MPC-Friendly KV Cache Eviction for Efficient Private LLM Inference", arXiv 2501.06807.

Legend: B batch, Hkv KV heads, G query heads of each, T tokens, C coarse clusters, P fine ones, D head size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.core.layout import Regions
from keyhole.kernels import exact_scores
from keyhole.kernels.pq.tables import softcapped
from keyhole.selection.base import Selection, Selector, Step
from keyhole.selection.boxes import box_ends
from keyhole.selection.picking.pages import page_count, ranked, spans
from keyhole.selection.picking.rank import group_shares
from keyhole.selection.shared import Board, Ranking
from keyhole.storage.tiers.buffer import GrowingBuffer

_CHUNK = 8192  # tokens summarised at a time, to bound temporary memory
_BROKEN = 2  # coarse clusters of which a budget may only find a part: at the sinks and at the window


class ClusterSelector(Selector):
    """Ranks coarse clusters, then the fine ones within the best of these, by the group's summed query.

    A cluster is represented by `alpha` of the greatest and `1 - alpha` of the least number of each channel
    among its keys: a point in its box, so its score is one product, and the sum of the scores of a group's
    query heads is the score of their sum. Coarse clusters are indexed when all their tokens are there; what
    came since is read before anything else, and so is the first cluster. How many clusters are read, at both
    levels, depends on lengths alone. With a `share` of 1 there is one level: coarse clusters are neither
    stored nor scored.

    Args:
        fine: slots of a fine cluster.
        coarse: slots of a coarse one, a multiple of it.
        share: coarse clusters whose fine ones are ranked; more if the budget asks for more.
        alpha: where in its box a cluster's point is, from 0, the least, to 1.
    """

    def __init__(self, fine: int, coarse: int, share: float, alpha: float) -> None:
        self.fine, self.coarse, self.share, self.alpha = fine, coarse, share, alpha
        self.board = Board()
        # By level; their points `[B, Hkv, C, D]` and `[B, Hkv, P, D]`.
        self._sizes = {"fine": fine} if share >= 1 else {"coarse": coarse, "fine": fine}
        self._points: dict[str, GrowingBuffer] = {}
        self._first: Tensor | None = None  # int32 `[B]`

    @property
    def minimum(self) -> int:
        return self.coarse

    def build(self, keys: Tensor, regions: Regions) -> None:
        # A copy: layers are given one tensor, and what each states is to be saved apart.
        self._points, self._first, self.length = self._empty(), regions.first.clone(), 0
        self.append(keys)

    def _empty(self) -> dict[str, GrowingBuffer]:
        return {level: GrowingBuffer() for level in self._sizes}

    def append(self, keys: Tensor) -> None:
        whole = keys[:, :, : keys.shape[2] // self.coarse * self.coarse]
        for part in whole.split(max(_CHUNK // self.coarse, 1) * self.coarse, dim=2):
            self._add(part)

    def _add(self, keys: Tensor) -> None:
        slots = torch.arange(self.length, self.length + keys.shape[2], device=keys.device)
        counted = slots >= self._starts().view(-1, 1)
        for level, points in self._points.items():
            greatest, least = box_ends(keys, counted, 0, self._sizes[level])
            point = self.alpha * greatest.float() + (1 - self.alpha) * least.float()
            points.append(point.to(keys.dtype))
        self.length += keys.shape[2]

    def select(self, step: Step) -> Selection:
        self.board.pin(self._ranking(step))
        return self.board.pick(step, self.fine)

    def _ranking(self, step: Step) -> Ranking:
        """Scores of fine clusters, -inf for those of coarse ones that were not among the best.

        All fine ones are scored: reading them in a row is faster than gathering those that are wanted.
        """
        below = self._scores(step, "fine")
        scores = self._forced(below, step.regions, self.fine)
        if "coarse" in self._sizes:
            scores = scores.masked_fill(~self._survivors(step, below.shape[-1]), -torch.inf)
        return Ranking(scores, *self._shares(below, step), step.regions.length)

    def _survivors(self, step: Step, count: int) -> Tensor:
        """Which of `count` fine clusters are in one of the best coarse ones, bool `[B, Hkv, P]`."""
        above = self._scores(step, "coarse")
        examined = self._examined(step).view(-1, 1, 1)
        order = ranked(self._forced(above, step.regions, self.coarse), self._most(step))
        within = torch.arange(order.shape[-1], device=order.device) < examined
        survives = torch.zeros_like(above, dtype=torch.bool).scatter(-1, order, within.expand(order.shape))
        return survives.repeat_interleave(self.coarse // self.fine, -1)[..., :count]

    def _scores(self, step: Step, level: str) -> Tensor:
        """Float32 `[B, Hkv, C]`, of the clusters of a level, by their points; 0 where none is known yet."""
        points = self._points[level].view()
        heads, count = points.shape[1], page_count(step.regions, self._sizes[level])
        query = step.query.unflatten(1, (heads, -1)).float().sum(2).flatten(0, 1).unsqueeze(1)
        products = exact_scores(query, points.flatten(0, 1), 0, min(count, points.shape[2]))
        return F.pad(products, (0, count - products.shape[-1])).squeeze(1).unflatten(0, (-1, heads))

    def _shares(self, products: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Estimated shares of attention `[B, Hkv, P]` and the always-read one `[B, Hkv]`.

        As if all query heads of a group asked for their mean, and keys lay where their cluster's point is.
        """
        group = step.query.shape[1] // products.shape[1]
        _, sizes = (part.unsqueeze(1) for part in spans(step.regions, self.fine))
        logits = softcapped(products * (step.logits.scale / group), step.logits.softcap)
        logs = logits.masked_fill(sizes == 0, -torch.inf) + sizes.clamp(min=1).log()
        return group_shares(logs.unsqueeze(2).expand(-1, -1, group, -1), step)

    def _examined(self, step: Step) -> Tensor:
        """Coarse clusters whose fine ones are ranked, int64 `[B]`: enough to fill the budget."""
        _, sizes = spans(step.regions, self.coarse)
        wanted = ((sizes > 0).sum(-1) * self.share).ceil().long()
        return wanted.maximum(-(-step.limits_on_device() // self.coarse) + _BROKEN).clamp(max=sizes.shape[-1])

    def _most(self, step: Step) -> int:
        """No row examines more; known without a look at the device."""
        count = page_count(step.regions, self.coarse)
        # A device rounds the share of its clusters in float32.
        share = math.ceil(count * self.share) + 1
        return min(count, max(share, -(-max(step.limits()) // self.coarse) + _BROKEN))

    def _forced(self, scores: Tensor, regions: Regions, size: int) -> Tensor:
        """Scores of clusters of a size, by which a text's first and those not yet indexed come first."""
        clusters = torch.arange(scores.shape[-1], device=scores.device)
        first = regions.starts.view(-1, 1, 1) // size
        forced = (clusters == first) | (clusters >= self.length // size)
        _, sizes = spans(regions, size)
        # Whatever a score is, a cluster that competes comes before those that do not.
        scores = scores.nan_to_num(nan=torch.finfo(scores.dtype).min).masked_fill(forced, torch.inf)
        return scores.masked_fill(sizes.unsqueeze(1) == 0, -torch.inf)

    def bytes_read(self, step: Step) -> int:
        counts = (page_count(step.regions, size) for size in self._sizes.values())
        return sum(counts) * self._points["fine"].view()[0, 0, 0].nbytes

    def crop(self, length: int) -> None:
        self.length = min(self.length, length // self.coarse * self.coarse)
        for level, points in self._points.items():
            points.crop(self.length // self._sizes[level])
        self.board.pin(None)

    def reorder(self, rows: Tensor) -> None:
        if self._first is not None:
            for points in self._points.values():
                points.reorder(rows)
            self._first = self._first.index_select(0, rows.to(self._first.device))
        self.board.pin(None)

    def state(self) -> dict[str, Tensor]:
        if self.length == 0:
            return {}
        return {level: points.view() for level, points in self._points.items()} | {"first": self._starts()}

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        super().restore(state, length)
        self._points, self._first = self._empty(), state.get("first")
        for level, points in self._points.items():
            if state:
                points.append(state[level])

    @property
    def nbytes(self) -> int:
        return sum(points.nbytes for points in self._points.values())

    def _starts(self) -> Tensor:
        """The first slot of each batch row that counts, int32 `[B]`."""
        if self._first is None:
            raise ValueError("no cluster is known yet; call build first")
        return self._first
