"""Blocks by the query's attention to compressed keys (InfLLM-V2), as the model was trained to choose them.

Source: "InfLLM-V2: Dense-Sparse Switchable Attention for Seamless Short-to-Long Adaptation", arXiv
2509.24663.

Legend: B batch, H query heads, Hkv KV heads, G query heads of each, T tokens, C strides, J windows, P blocks,
K blocks of a list, D head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole import kernels
from keyhole.core.layout import Regions
from keyhole.kernels.pq.tables import softcapped
from keyhole.kernels.ranking.pick_blocks import Listed, pick_blocks, picks_blocks_natively
from keyhole.selection.base import Capturable, Selection, Step
from keyhole.selection.block_lists import BlockRule, block_lists, by_block, window_shares
from keyhole.selection.picking.lists import listed_mass, listed_slots
from keyhole.storage import CapturableStorage, GrowingBuffer

_CHUNK = 8192  # tokens compressed at a time, to bound temporary memory


class CompressedSelector(Capturable):
    """Reads whole blocks by the rules of `block_lists`: those the query's heads attend to most, as windows.

    The mean key of each whole stride is kept; a window is two of them. A step indexes whole strides of the
    newest tokens itself, as windows compete in the softmax however new they are. Blocks and strides begin at
    multiples of their size in slots; windows with padding in them do not count.

    Args:
        block: tokens of a block.
        stride: from one window to the next.
        sinks: always-read tokens at the start, whole blocks of which are no choice.
        window: always-read newest tokens; the block it cuts through is always chosen.
    """

    def __init__(self, block: int, stride: int, sinks: int, window: int) -> None:
        self.block, self.stride, self.window = block, stride, window
        self.init, self.local = sinks // block, window // block
        self._strides = GrowingBuffer()  # mean keys `[B, Hkv, C, D]`
        self._room = 0  # strides there is room for, while steps are of fixed size
        self._missing = 0  # the first stride to be indexed before the first such step

    def build(self, keys: Tensor, regions: Regions) -> None:  # noqa: ARG002
        self._strides, self.length = GrowingBuffer(), 0
        self._add(keys)

    def append(self, keys: Tensor) -> None:
        self._add(keys)

    def _add(self, keys: Tensor) -> None:
        """Index the whole strides of the next keys; the rest comes again."""
        whole = keys.shape[2] // self.stride * self.stride
        for part in keys[:, :, :whole].split(_CHUNK // self.stride * self.stride or self.stride, dim=2):
            self._strides.append(stride_means(part, self.stride))
        self.length += whole

    def select(self, step: Step) -> Selection:
        if not self._room:
            self._follow(step)
        logits = self._logits(step)
        if step.logits.softcap is None and picks_blocks_natively(logits):
            return Selection(*pick_blocks(logits, self._matters(), step.anchor_lse, self._listed(step)))
        lists = self._lists(step, logits)
        slots, counts = listed_slots(lists, step, self.block)
        mass = listed_mass(lists, logits, self.stride, step, self.block)
        return Selection(slots, counts, mass)

    def _follow(self, step: Step) -> None:
        """Index the whole strides among the newest tokens."""
        if step.regions.length - self.length >= self.stride:
            self._add(step.storage.keys(self.length))

    def _logits(self, step: Step) -> Tensor:
        """Those of the mean keys of strides, float32 `[B, Hkv, G, C]`."""
        held = self._strides.view()
        query = step.query.unflatten(1, (held.shape[1], -1)).float().flatten(0, 1)
        products = kernels.exact_scores(query, held.flatten(0, 1), 0, held.shape[2], scale=step.logits.scale)
        return products.unflatten(0, held.shape[:2])

    def _listed(self, step: Step) -> Listed:
        """What the native choice is told of rule and regions."""
        parts, limits = step.regions, step.limits()
        rules = [self.rule(limit) for limit in limits]
        blocks = parts.on_device(tuple(rule.blocks for rule in rules))
        recalled = parts.on_device(
            tuple(rule.init + rule.local + (rule.recalled or rule.free) for rule in rules)
        )
        bounds = (parts.starts, parts.derived("ends", lambda: parts.ends), parts.first, parts.stop)
        counts = (blocks, recalled, step.limits_on_device(), max(limits), parts.length)
        return Listed(self.block, self.stride, self.init, self.local, *counts, *bounds)

    def _matters(self) -> Tensor | None:
        """Mean importance of strides `[B, Hkv, C]`, where blocks are chosen by it."""
        return None

    def _lists(self, step: Step, logits: Tensor) -> Tensor:
        """Blocks to read, int32 `[B, Hkv, K]`, ascending, -1 behind them."""
        windows = softcapped((logits[..., :-1] + logits[..., 1:]) / 2, step.logits.softcap)
        visible, seen = self._visible(step.regions, windows.shape[-1]), step.regions.ends.long()
        shares = window_shares(windows.unsqueeze(3), visible)
        blocks = -(-step.regions.length // self.block)
        recall = by_block(shares, visible, blocks, self.block // self.stride)
        static = self._importance(visible, blocks)
        current = ((seen - 1) // self.block).view(-1, 1, 1)
        rules = [self.rule(limit) for limit in step.limits()]
        if len(set(rules)) == 1:
            return block_lists(recall, static, current, rules[0]).squeeze(2)
        rows = [
            block_lists(recall[row], None if static is None else static[row], current[row], rule).squeeze(1)
            for row, rule in enumerate(rules)
        ]
        widest = max(row.shape[-1] for row in rows)
        return torch.stack([F.pad(row, (0, widest - row.shape[-1]), value=-1) for row in rows])

    def _visible(self, regions: Regions, windows: int) -> Tensor:
        """Windows that are whole, and without padding, bool `[B, 1, 1, J]`."""

        def make() -> Tensor:
            begins = torch.arange(windows, device=regions.first.device) * self.stride
            seen = begins + 2 * self.stride <= regions.ends.unsqueeze(1)
            return (seen & (begins >= regions.starts.unsqueeze(1)))[:, None, None]

        return regions.derived(("windows", windows, self.stride), make)

    def rule(self, limit: int) -> BlockRule:
        """For a row that may read so many tokens beside sinks and window."""
        blocks = self.init + self.local + max(1, limit // self.block)
        return BlockRule(self.block, self.stride, self.init, self.local, blocks)

    def _importance(self, visible: Tensor, blocks: int) -> Tensor | None:  # noqa: ARG002
        """That of blocks `[B, Hkv, 1, P]`, where they are chosen by it."""
        return None

    def reserve(self, tokens: int) -> None:
        self._room, self._missing = tokens // self.stride, self.length // self.stride
        self._strides.reserve(self._room)
        self._strides.extend(self._room)

    def place(self, storage: CapturableStorage, slot: Tensor) -> None:
        if self._missing < self._room:
            # Those of the newest tokens, which no step has asked for yet.
            self._put(storage, torch.arange(self._missing, self._room, device=slot.device))
            self._missing = self._room
        self._put(storage, ((slot + self.window) // self.stride).clamp(max=max(self._room - 1, 0)))

    def _put(self, storage: CapturableStorage, numbers: Tensor) -> None:
        """Index the strides of int64 `numbers [n]` again; those that are not whole count for nothing."""
        if self._room:
            self._strides.put(stride_means(storage.keys_at(self._slots_of(numbers)), self.stride), numbers)

    def _slots_of(self, numbers: Tensor) -> Tensor:
        return (
            numbers.unsqueeze(1) * self.stride + torch.arange(self.stride, device=numbers.device)
        ).flatten()

    def release(self, length: int) -> None:
        self._room = 0
        self.crop(length)

    def bytes_read(self, step: Step) -> int:
        return -(-step.regions.last // self.stride) * self._strides.view()[0, 0, :1].nbytes

    def crop(self, length: int) -> None:
        whole = min(self.length, length) // self.stride
        self._strides.crop(whole)
        self.length = whole * self.stride

    def reorder(self, rows: Tensor) -> None:
        self._strides.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        return {"strides": self._strides.view()} if self.length else {}

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        self._strides, self.length = GrowingBuffer(), 0
        if state:
            self._strides.append(state["strides"])
            self.length = length

    @property
    def nbytes(self) -> int:
        return self._strides.nbytes


def stride_means(rows: Tensor, stride: int) -> Tensor:
    """Means `[B, Hkv, T / stride, C]` of strides of `rows [B, Hkv, T, C]`, in their type."""
    batch, heads, tokens, width = rows.shape
    return rows.reshape(batch, heads, tokens // stride, stride, width).float().mean(3).to(rows.dtype)
