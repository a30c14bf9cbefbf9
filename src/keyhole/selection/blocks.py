"""Blocks judged by a few representative tokens (InfLLM).

Source: Xiao et al., "InfLLM: Training-Free Long-Context Extrapolation for LLMs with an Efficient Context
Memory", arXiv 2402.04617.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, T tokens, P blocks, R representatives of a block,
D head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole import kernels
from keyhole.core.needs import Needs
from keyhole.kernels.pq.tables import softcapped
from keyhole.selection.base import Selection, Step
from keyhole.selection.local_scores import LocalScores
from keyhole.selection.mass_control import Estimate
from keyhole.selection.picking.pages import page_count, spans
from keyhole.selection.picking.rank import group_shares
from keyhole.selection.summaries import SummarySelector
from keyhole.storage import Storage

_NONE = -torch.inf


class RepresentativeSelector(SummarySelector):
    """Reads the blocks whose representatives have the greatest logits.

    A token represents its block by the mean logit that the `window - 1` queries after it give it, so it is
    indexed when it leaves the window. A summary is the keys of the `representatives` best tokens, then their
    scores, -inf where a block has fewer tokens that count. Tokens whose following queries never came here
    have a score of 0.

    Args:
        per_head: each KV head reads blocks of its own; else a layer reads one list.
    """

    needs = Needs.ALL_QUERIES

    def __init__(self, block: int, representatives: int, window: int, *, per_head: bool) -> None:
        super().__init__(block)
        self.representatives, self.window, self.per_head = representatives, window, per_head
        self._scores = LocalScores(max(1, window - 1))

    @property
    def varying(self) -> str:
        return "which tokens represent a block follows from the queries of each step"

    def see_queries(self, queries: Tensor, storage: Storage) -> None:
        heads = storage.keys(storage.length - 1).shape[1]
        self._scores.add(queries.unflatten(1, (heads, -1)).sum(2), storage)

    def append(self, keys: Tensor) -> None:
        super().append(keys[:, :, : max(keys.shape[2] - self.window, 0)])
        # A block that is not whole may be cut, and is then judged again from its first token on.
        self._scores.forget(self.length // self.page * self.page)

    def _summarised(self, keys: Tensor, counted: Tensor, begun: int) -> Tensor:
        scores = self._scores.means(self.length, keys).masked_fill(~counted.unsqueeze(1), _NONE)
        ends = (begun, -(begun + keys.shape[2]) % self.page)
        scores = F.pad(scores, ends, value=_NONE).unflatten(2, (-1, self.page))
        keys = F.pad(keys, (0, 0, *ends)).unflatten(2, (-1, self.page))
        return self._best(keys, scores)

    def _joined(self, former: Tensor, latter: Tensor) -> Tensor:
        parts = (self._parts(summary.unsqueeze(2)) for summary in (former, latter))
        keys, scores = (torch.cat(each, dim=3) for each in zip(*parts, strict=True))
        return self._best(keys, scores.float()).squeeze(2)

    def _best(self, keys: Tensor, scores: Tensor) -> Tensor:
        """Summaries `[B, Hkv, P, W]` of tokens `[B, Hkv, P, page, D]` and their scores; ties to the first."""
        order = scores.sort(dim=-1, descending=True, stable=True).indices[..., : self.representatives]
        best = keys.gather(3, order.unsqueeze(-1).expand(*order.shape, keys.shape[-1]))
        return torch.cat([best.flatten(3), scores.gather(-1, order).to(keys.dtype)], dim=-1)

    def _parts(self, summaries: Tensor) -> tuple[Tensor, Tensor]:
        """The keys `[B, Hkv, P, R, D]` of representatives, and their scores `[B, Hkv, P, R]`."""
        keys, scores = summaries.tensor_split([-self.representatives], dim=-1)
        return keys.unflatten(-1, (self.representatives, -1)), scores

    def select(self, step: Step) -> Selection:
        self.see_queries(step.query.unsqueeze(2), step.storage)
        return super().select(step)

    def _estimate(self, step: Step) -> Estimate:
        logits, represented = self._logits(step)
        count = represented.sum(-1).clamp(min=1)
        _, sizes = spans(step.regions, self.page)
        sizes = sizes.view(len(sizes), 1, 1, -1)
        missing = (sizes == 0) | ~represented.any(-1)
        logs = logits.logsumexp(-1) - count.log() + sizes.clamp(min=1).log()
        shares, anchored = group_shares(logs.masked_fill(missing, _NONE), step)
        scores = (logits.masked_fill(~represented, 0).sum(-1) / count).masked_fill(missing, _NONE).sum(2)
        scores = scores if self.per_head else scores.sum(1, keepdim=True).expand_as(scores)
        return Estimate(scores, shares, anchored, self._by_page)

    def _logits(self, step: Step) -> tuple[Tensor, Tensor]:
        """Those of representatives, float32 `[B, Hkv, G, P, R]`, -inf where there is none; and where not."""
        pages = page_count(step.regions, self.page)
        keys, scores = self._parts(self._summaries.view()[:, :, :pages])
        query = step.query.unflatten(1, (keys.shape[1], -1)).flatten(0, 1)
        flat = keys.flatten(2, 3).flatten(0, 1)
        products = kernels.exact_scores(query, flat, 0, flat.shape[1], scale=step.logits.scale)
        logits = softcapped(products, step.logits.softcap).unflatten(0, keys.shape[:2])
        represented = (scores != _NONE).unsqueeze(2)
        return logits.unflatten(-1, scores.shape[2:]).masked_fill(~represented, _NONE), represented

    def crops_exactly(self, length: int) -> bool:
        """Queries that came count for the slots before them."""
        return self._scores.stop <= length

    def crop(self, length: int) -> None:
        super().crop(length)
        self._scores.crop(length)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self._scores.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        return super().state() | self._scores.state()

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        super().restore(state if "summaries" in state else {}, length)
        self._scores.restore(state)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._scores.nbytes
