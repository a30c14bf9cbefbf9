"""A token scores the attention that the newest ones pay to it (SnapKV).

Source: "SnapKV: LLM Knows What You Are Looking for Before Generation", arXiv 2404.14469.

Legend: B batch, H query heads, Hkv KV heads, N slots, D head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.attention import Logits, column_sums
from keyhole.retention.base import Scorer, ScorerInput
from keyhole.retention.kept import Kept
from keyhole.storage import Storage


class Observed(Scorer):
    """The attention of the newest `window` tokens, summed over them and the heads of a group.

    With a `kernel`, a token scores the most that one of so many around it gets, so that neighbours come
    along. Tokens that came without a query, as generated ones do, part what came before from the newest.
    """

    is_attention = True

    def __init__(self, window: int, kernel: int = 1) -> None:
        self.window, self.kernel = window, kernel
        self.looks_back: int | None = window
        self.clear()

    def clear(self) -> None:
        self._queries: Tensor | None = None  # `[B, H, at most window, D]`
        self._end = 0  # tokens there were when the newest of them came
        self._logits = Logits(1.0)

    def see(self, seen: ScorerInput) -> None:
        window, queries = self._wanted(seen.kept), seen.query
        follows = self._end == seen.kept.seen - queries.shape[2]
        if self._queries is not None and follows and queries.shape[2] < window:
            queries = torch.cat([self._queries, queries], 2)
        self._queries, self._logits = queries[:, :, -window:].clone(), seen.logits
        self._end = seen.kept.seen

    def _wanted(self, kept: Kept) -> int:  # noqa: ARG002
        """How many queries to hold."""
        return self.window

    def scores(self, storage: Storage, kept: Kept) -> Tensor:
        sums = self.attention(storage, kept)
        if sums is None:
            return kept.positions.float()
        if self.kernel == 1:
            return sums
        # What the window itself gets is not to lift its neighbours.
        sums[..., -self.window :] = 0
        return F.max_pool1d(sums, self.kernel, stride=1, padding=self.kernel // 2)

    def attention(self, storage: Storage, kept: Kept, *, by_head: bool = False) -> Tensor | None:
        """What each token gets, as `column_sums` of the queries that are held; None where there are none."""
        if self._queries is None or not self._queries.shape[2]:
            return None
        filling = kept.filling if kept.ragged else None
        return column_sums(self._queries, storage.keys(), self._logits, filling=filling, by_head=by_head)

    def crop(self, tokens: int) -> None:
        if self._queries is not None:
            self._queries = self._queries[:, :, : max(self._queries.shape[2] - tokens, 0)]
            self._end -= tokens

    def reorder(self, rows: Tensor) -> None:
        if self._queries is not None:
            self._queries = self._queries[rows.to(self._queries.device)]

    def state(self) -> dict[str, Tensor]:
        if self._queries is None:
            return {}
        sinks, softcap = self._logits.sink_logits, self._logits.softcap or 0.0
        held = {
            "queries": self._queries,
            "logits": torch.tensor([self._logits.scale, softcap, self._end], dtype=torch.float64),
        }
        return held if sinks is None else held | {"sinks": sinks}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.clear()
        if state:
            scale, softcap, end = state["logits"].tolist()
            self._queries, self._end = state["queries"], int(end)
            self._logits = Logits(scale, softcap or None, state.get("sinks"))

    @property
    def nbytes(self) -> int:
        return 0 if self._queries is None else self._queries.nbytes
