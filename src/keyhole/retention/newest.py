"""A token scores the attention that the newest part of the prompt pays to it (MPCache's static stage).

Source: "MPCache: MPC-Friendly KV Cache Eviction for Efficient Private LLM Inference", arXiv 2501.06807.

Legend: B batch, Hkv KV heads, N slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.attention import column_sums
from keyhole.retention.kept import Kept
from keyhole.retention.observed import Observed
from keyhole.storage import Storage

_PART, _PART_OF_LONG, _LONG = 5, 10, 24_000  # one token in so many; a long text has more than that


class NewestShare(Observed):
    """The attention of a fifth of the text, its newest tokens; of a tenth where it is long.

    It is for looking once: queries are held until scores were asked for. A batch row's share is that of its
    own text.

    With a `kernel`, a token scores the most that one of so many around it gets, without what the newest
    `unlifting` get, which are kept in any case.

    Args:
        per_head: each KV head by its own query heads; else all heads of a layer have the same scores.
    """

    def __init__(self, *, per_head: bool, kernel: int = 1, unlifting: int = 0) -> None:
        super().__init__(0, kernel)
        self.looks_back = None
        self.per_head, self.unlifting = per_head, unlifting

    def _wanted(self, kept: Kept) -> int:
        return max(map(newest, kept.context))

    def scores(self, storage: Storage, kept: Kept) -> Tensor:
        if self._queries is None or not self._queries.shape[2]:
            return kept.positions.float()
        keys = storage.keys()
        rows = [
            column_sums(
                self._queries[row : row + 1, :, -max(newest(context), 1) :],
                keys[row : row + 1],
                self._logits,
                filling=kept.filling[row : row + 1],
            )
            for row, context in enumerate(kept.context)
        ]
        self.clear()
        sums = torch.cat(rows)
        sums = sums if self.per_head else sums.mean(1, keepdim=True)
        if self.kernel > 1:
            sums[..., max(sums.shape[-1] - self.unlifting, 0) :] = 0
            sums = F.max_pool1d(sums, self.kernel, stride=1, padding=self.kernel // 2)
        return sums.expand(-1, keys.shape[1], -1)


def newest(context: int) -> int:
    """Tokens of a text of so many whose attention counts."""
    return -(-context // (_PART if context <= _LONG else _PART_OF_LONG))
