"""Tokens ranked by a narrower key: a few numbers of each, fitted to the prompt (Loki, Double Sparsity).

Legend: B batch, Hkv KV heads, G query heads of each, N tokens, T tokens that follow, D head size, W numbers
of a narrow key.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.core.casts import saturated
from keyhole.core.layout import Regions
from keyhole.core.scales import scales_of
from keyhole.kernels.pq.tables import softcapped
from keyhole.selection.base import Selection, Selector, Step
from keyhole.selection.mass_control import Estimate, MassControl
from keyhole.selection.picking.rank import competing, group_probabilities, pick
from keyhole.selection.quantisers.narrowing import Narrowing
from keyhole.selection.shown import Shown
from keyhole.storage import GrowingBuffer

_CHUNK = 8192  # tokens projected at a time, to bound temporary memory


class NarrowSelector(Selector):
    """Scores tokens by `width` numbers of each key, and reads the best.

    What the projection leaves out of the mean key is added to all logits, so that they compare with exact
    ones.

    Args:
        narrowing: makes the projection, of the keys of a batch row and of the queries it was shown.
        width: numbers of a narrow key, at most those of a key.
        part: without a width, which part of the head size it is.
    """

    def __init__(self, narrowing: Narrowing, width: int | None, part: int) -> None:
        self.narrowing, self.width, self.part = narrowing, width, part
        self._narrow = GrowingBuffer()  # `[B, Hkv, N, W]`
        # Once built, float32: `projection [B, Hkv, D, W]` and `rest [B, Hkv, D]`, of the mean key.
        self._fitted: dict[str, Tensor] = {}
        self._shown = Shown()
        self._mass_control = MassControl()

    def see(self, queries: Tensor, kv_heads: int, tokens: int) -> None:
        self._mass_control.see(queries, tokens)
        self._shown.see(queries, kv_heads, tokens)

    def build(self, keys: Tensor, regions: Regions) -> None:
        first = regions.first.tolist()
        rows = [self._fit(keys, regions, row, begin) for row, begin in enumerate(first)]
        fitted = [torch.stack(part) for part in zip(*rows, strict=True)]
        self._fitted = dict(zip(("projection", "rest"), fitted, strict=True))
        self._narrow, self.length = GrowingBuffer(), 0
        self.append(keys)

    def _fit(self, keys: Tensor, regions: Regions, row: int, begin: int) -> tuple[Tensor, Tensor]:
        """Projection and rest of one batch row, by its keys from `begin` on."""
        own = keys[row, :, begin:].float()
        own = own if own.shape[1] else torch.zeros_like(keys[row, :, :1], dtype=torch.float32)
        shown = self._shown.of(row, regions.padding[row])
        queries = own[:, :0] if shown is None else shown.float()
        scales, mean = scales_of(own)[:, None, None], own.mean(1)
        queries = queries / scales_of(queries)[:, None, None]
        size = own.shape[-1]
        width = min(self.width or max(1, size // self.part), size)
        projection = self.narrowing(own / scales, queries, width)
        kept = (mean.unsqueeze(1) @ projection) @ projection.transpose(1, 2)
        return projection, mean - kept.squeeze(1)

    def append(self, keys: Tensor) -> None:
        for part in keys.split(_CHUNK, dim=2):
            self._narrow.append(saturated(part.float() @ self._known("projection"), keys.dtype))
            self.length += part.shape[2]

    def select(self, step: Step) -> Selection:
        reach = self._mass_control.reach(step, self._estimate)
        logits = self.token_logits(step)
        if reach is None:
            return self._mass_control.told(pick(logits, step), step, self._estimate)
        picked = pick(logits, step, reach.share)
        return picked._replace(mass=reach.held(picked.mass))

    def _estimate(self, step: Step) -> Estimate:
        shares, anchored = group_probabilities(self.token_logits(step), step)
        competes = competing(step.regions, step.regions.last)
        return Estimate(shares.masked_fill(~competes, -1.0), shares, anchored, lambda values: values)

    def token_logits(self, step: Step) -> Tensor:
        narrow, last = self._narrow.view(), step.regions.last
        query = step.query.unflatten(1, (narrow.shape[1], -1)).float()
        asked = query @ self._known("projection")
        scores = kernels.exact_scores(
            asked.flatten(0, 1), narrow.flatten(0, 1), 0, last, scale=step.logits.scale
        )
        rest = query @ self._known("rest").unsqueeze(-1) * step.logits.scale
        return softcapped(scores.unflatten(0, narrow.shape[:2]) + rest, step.logits.softcap)

    def bytes_read(self, step: Step) -> int:
        fitted = sum(part[0, 0].nbytes for part in self._fitted.values())
        narrow = self._narrow.view()[0, 0, 0].nbytes
        return step.regions.last * narrow + fitted + self._mass_control.bytes_read(step)

    def crop(self, length: int) -> None:
        super().crop(length)
        self._narrow.crop(length)
        self._mass_control.crop(length)

    def reorder(self, rows: Tensor) -> None:
        if self._fitted:
            self._narrow.reorder(rows)
        self._fitted = {name: _rows(part, rows) for name, part in self._fitted.items()}
        self._shown.reorder(rows)
        self._mass_control.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        if self.length == 0:
            return {}
        return {"narrow": self._narrow.view()} | self._fitted | self._mass_control.state()

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        super().restore(state, length)
        self._narrow = GrowingBuffer()
        self._fitted = {name: state[name] for name in ("projection", "rest") if name in state}
        self._mass_control.restore(state)
        if state:
            self._narrow.append(state["narrow"])

    @property
    def nbytes(self) -> int:
        held = sum(part.nbytes for part in self._fitted.values())
        return self._narrow.nbytes + held + self._mass_control.nbytes

    def _known(self, name: str) -> Tensor:
        if name not in self._fitted:
            raise ValueError(f"narrow keys have no {name} yet; call build first")
        return self._fitted[name]


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.index_select(0, rows.to(tensor.device))
