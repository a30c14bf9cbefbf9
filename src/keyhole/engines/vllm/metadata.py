"""The rows of a vLLM step, as the host knows them, and whose requests they are of.

Legend: R rows of the batch, W blocks of the longest row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from keyhole.engines.vllm.announcer import Step
from keyhole.engines.vllm.rows import Row


class BatchRow(NamedTuple):
    """One sequence of a batch.

    Attributes:
        place: which row of the batch.
        start: place of its first new token in the step's flat tensors.
        begin: tokens computed before the step.
        count: new tokens.
    """

    place: int
    start: int
    begin: int
    count: int


class Batch(NamedTuple):
    """The rows of one step.

    Attributes:
        starts: where each row starts in the flat tensors, `R + 1` numbers.
        lengths: tokens of each row, new ones among them.
        table: block ids `[R, W]`, on the device.
    """

    starts: list[int]
    lengths: list[int]
    table: Tensor

    @classmethod
    def of(cls, common: Any) -> Batch:
        """The rows in vLLM's `CommonAttentionMetadata`; lengths are exact without speculative decoding."""
        lengths = common.seq_lens_cpu_upper_bound
        lengths = common.seq_lens if lengths is None else lengths
        return cls(common.query_start_loc_cpu.tolist(), lengths.tolist(), common.block_table_tensor)

    def rows(self) -> Iterator[BatchRow]:
        """Those that have new tokens; others fill a batch up."""
        for row, (start, end) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            if end > start:
                yield BatchRow(row, start, self.lengths[row] - (end - start), end - start)


class BatchBuilder:
    """Beside a backend's metadata builder: its metadata have the `batch`, too."""

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]
        metadata.batch = Batch.of(common_attn_metadata)
        return metadata


def matched(step: Step, batch: Batch, group: int, block_size: int) -> list[Row]:
    """The rows of a batch with the requests that they are of, by the blocks of a group of layers.

    The worker orders its batch as it likes: a row is known by the block that its first new token goes to.

    Raises:
        RuntimeError: the batch is not the one the scheduler announced.
    """
    rows = list(batch.rows())
    by_block = {scheduled.blocks[group]: scheduled for scheduled in step.scheduled}
    columns = torch.tensor([row.begin // block_size for row in rows], device=batch.table.device)
    places = torch.tensor([row.place for row in rows], device=batch.table.device)
    found = []
    for row, block in zip(rows, batch.table[places, columns].tolist(), strict=True):
        scheduled = by_block.get(block)
        if scheduled is None or (scheduled.begin, scheduled.count) != (row.begin, row.count):
            raise RuntimeError(
                f"{row.count} tokens from {row.begin} on go to block {block}, which the scheduler gave to "
                f"{scheduled}; Keyhole was not tested with this version of vLLM"
            )
        table = batch.table[row.place, : -(-(row.begin + row.count) // block_size)]
        found.append(Row(scheduled.request, row.begin, row.count, row.start, scheduled.prompt, table))
    return found
