"""Decode steps of several requests that read all there is, in one call; imports nothing of vLLM.

Legend: R rows, T tokens of a step, H query heads, Hkv KV heads, D head size, W blocks of the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from keyhole import kernels
from keyhole.attention import Logits
from keyhole.engines.vllm.rows import Row
from keyhole.storage import Pages


class Together(NamedTuple):
    """Rows of one new token each.

    Attributes:
        places: int64 `[R]`, where the tokens are in the step's flat tensors.
        table: int32 `[R, W]`, the pages of each row.
        lengths: int64 `[R]`, its tokens, the new one among them.
    """

    places: Tensor
    table: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], block_size: int) -> Together:
        """The rows, for all layers of a step."""
        tables = [row.table[: -(-row.end // block_size)] for row in rows]
        device = tables[0].device
        places = torch.tensor([row.start for row in rows], device=device)
        lengths = torch.tensor([row.end for row in rows], device=device)
        return cls(places, pad_sequence(tables, batch_first=True), lengths)

    def attend(self, query: Tensor, pages: Pages, logits: Logits, out: Tensor) -> None:
        """Attention of the rows' part of `query [T, H, D]` into that of `out [T, H, D]`."""
        rows, heads = len(self.places), pages.keys.shape[2]
        asked = query[self.places]
        sinks = logits.sink_logits
        attended = kernels.paged_attention(
            asked.reshape(rows * heads, -1, asked.shape[-1]),
            pages.keys,
            pages.values,
            self.table,
            self.lengths,
            scale=logits.scale,
            softcap=logits.softcap,
            sink_logits=None if sinks is None else sinks.view(heads, -1).repeat(rows, 1),
        )
        out[self.places] = attended.out.reshape(asked.shape).to(out.dtype)
