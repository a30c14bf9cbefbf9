"""Blocks by the query, and by the importance of their tokens, which no query changes (NOSA).

Source: "NOSA: Native and Offloadable Sparse Attention", arXiv 2510.13602.

Legend: B batch, Hkv KV heads, C strides, P blocks.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from keyhole.core.layout import Regions
from keyhole.selection.base import Step
from keyhole.selection.block_lists import BlockRule, by_block
from keyhole.selection.compressed import CompressedSelector, stride_means
from keyhole.storage import BiasedStorage, CapturableStorage, GrowingBuffer, Storage

_ROUNDING = 1e-6  # blocks: a share is a quotient of two numbers of them


class StaticSelector(CompressedSelector):
    """Of all that a step reads, at least `1 - query_share` are blocks that it would read whatever was asked.

    A `BiasedStorage` holds the importance of tokens; means of it over strides are kept here.

    Args:
        query_share: the share of all blocks of a step that its query chooses, k_q / k of the paper.
    """

    def __init__(self, block: int, stride: int, sinks: int, window: int, *, query_share: float) -> None:
        super().__init__(block, stride, sinks, window)
        self.query_share = query_share
        self._matter = GrowingBuffer()  # mean importance `[B, Hkv, C, 1]`, float32

    def build(self, keys: Tensor, regions: Regions) -> None:
        self._matter = GrowingBuffer()
        super().build(keys, regions)

    def _follow(self, step: Step) -> None:
        super()._follow(step)
        self._weigh(step.storage)

    def _weigh(self, storage: Storage) -> None:
        """Take the importance of all strides whose keys are indexed."""
        begin = self._matter.length * self.stride
        if begin < self.length or not self._matter.nbytes:
            rows = _biased(storage).importance(begin)[:, :, : self.length - begin]
            self._matter.append(stride_means(rows.unsqueeze(-1), self.stride))

    def rule(self, limit: int) -> BlockRule:
        rule = super().rule(limit)
        recalled = int(self.query_share * rule.blocks + _ROUNDING)
        return replace(rule, recalled=min(max(recalled, 1), rule.free))

    def _matters(self) -> Tensor:
        return self._matter.view().squeeze(-1)

    def _importance(self, visible: Tensor, blocks: int) -> Tensor:
        means = self._matters().unsqueeze(2)
        windows = (means[..., :-1] + means[..., 1:]) / 2
        return by_block(windows, visible, blocks, self.block // self.stride)

    def reserve(self, tokens: int) -> None:
        super().reserve(tokens)
        self._missing = min(self._missing, self._matter.length)
        if not self._matter.nbytes:
            self._matter.append(self._strides.view()[:, :, :0, :1].float())
        self._matter.reserve(self._room)
        self._matter.extend(self._room)

    def _put(self, storage: CapturableStorage, numbers: Tensor) -> None:
        super()._put(storage, numbers)
        if self._room:
            rows = _biased(storage).importance_at(self._slots_of(numbers)).unsqueeze(-1)
            self._matter.put(stride_means(rows, self.stride), numbers)

    def bytes_read(self, step: Step) -> int:
        return super().bytes_read(step) + -(-step.regions.last // self.stride) * 4

    def crop(self, length: int) -> None:
        super().crop(length)
        self._matter.crop(self.length // self.stride)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self._matter.reorder(rows)

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        super().restore(state, length)
        self._matter = GrowingBuffer()  # the next step takes it from what is stored

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._matter.nbytes


def _biased(storage: Storage) -> BiasedStorage:
    if not isinstance(storage, BiasedStorage):
        raise TypeError(f"a {type(storage).__name__} holds no importance of tokens; give a BiasedStorage")
    return storage
