"""Which blocks a query reads: the rules of InfLLM-V2 and NOSA, the same in training and in decoding.

Keys are compressed to means of windows of two strides. A query's attention to the windows, summed over the
heads of its group, gives each block the greatest of the windows that touch it. NOSA ranks blocks also by the
importance of their tokens, which no query changes. The first blocks and the newest ones are always read.

Sources: InfLLM-V2, arXiv 2509.24663; NOSA, arXiv 2510.13602. Where the released code approximates the sum of
the softmax by windows four times as long, it is exact here.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, Q queries, N tokens, J windows, P blocks, K blocks
of a list, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1 << 24  # scores of windows at a time, to bound temporary memory


@dataclass(frozen=True)
class BlockRule:
    """How many blocks of which size.

    Attributes:
        block: tokens of a block, a multiple of `stride`.
        stride: tokens from one window of keys to the next; a window has two strides.
        init: first blocks, always read.
        local: blocks before that of the query which are always read, with that one.
        blocks: all that a query reads, those among them.
        recalled: of the blocks that are not in `init`, nor among the newest `local`, as many are chosen by
            the query, with the oldest of the local ones; the others by importance. None is all by the query.

    Raises:
        ValueError: numbers that do not fit each other.
    """

    block: int = 64
    stride: int = 16
    init: int = 1
    local: int = 16
    blocks: int = 64
    recalled: int | None = None

    def __post_init__(self) -> None:
        if self.stride < 1 or self.block < 1 or self.block % self.stride:
            raise ValueError(f"blocks of {self.block} tokens are not whole strides of {self.stride}")
        if min(self.init, self.local) < 0 or self.free < 1:
            raise ValueError(
                f"{self.blocks} blocks are too few for {self.init} first and {self.local + 1} newest ones; "
                f"give at least {self.init + self.local + 1}"
            )
        if self.recalled is not None and not 1 <= self.recalled <= self.free:
            raise ValueError(f"recalled={self.recalled} is out of range; give 1 to {self.free}")

    @property
    def free(self) -> int:
        """Blocks of a list that are not in `init`, nor among the newest `local`."""
        return self.blocks - self.init - self.local


def window_means(rows: Tensor, stride: int) -> Tensor:
    """Means `[..., J, C]` of the whole windows of `rows [..., N, C]`, the j-th from `j * stride` on."""
    whole = rows.shape[-2] // stride
    if whole < 2:
        return rows.new_zeros(*rows.shape[:-2], 0, rows.shape[-1], dtype=torch.float32)
    means = rows[..., : whole * stride, :].float().unflatten(-2, (whole, stride)).mean(-2)
    return (means[..., :-1, :] + means[..., 1:, :]) / 2


def visible_windows(seen: Tensor, windows: int, stride: int) -> Tensor:
    """Which windows are whole among the first `seen [...]` tokens, bool `[..., J]`."""
    ends = (torch.arange(windows, device=seen.device) + 2) * stride
    return ends <= seen.unsqueeze(-1)


def window_shares(logits: Tensor, visible: Tensor) -> Tensor:
    """Attention to windows summed over a group, float32 `[..., Q, J]`, of `logits [..., G, Q, J]`.

    Zero where no window is `visible [..., Q, J]`.
    """
    visible = visible.unsqueeze(-3)
    return logits.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0.0).sum(-3)


def by_block(windows: Tensor, visible: Tensor, blocks: int, strides: int) -> Tensor:
    """The greatest of the visible windows that touch each block, `[..., P]`, of `windows [..., J]`.

    Block b has `strides` strides, and is touched by the windows from `b * strides - 1` on that begin before
    its end; -inf where none of them is visible.
    """
    values = windows.masked_fill(~visible, -torch.inf)
    values = F.pad(values, (1, max(blocks * strides - values.shape[-1], 0)), value=-torch.inf)
    return values.unfold(-1, strides + 1, strides)[..., :blocks, :].amax(-1)


def block_lists(recall: Tensor, importance: Tensor | None, current: Tensor, rule: BlockRule) -> Tensor:
    """The blocks each query reads, int32 `[..., Q, K]`, ascending, -1 behind them; K is at most P.

    Args:
        recall: `[..., Q, P]`, how much the query asks for each block.
        importance: `[..., Q or 1, P]`, whatever the query asks for; needed where the rule has `recalled`.
        current: `[..., Q]`, the block of the query; none after it is read.
        rule: how many; ties go to the lower block.

    Raises:
        ValueError: there is no importance, where the rule needs it.
    """
    index, current = torch.arange(recall.shape[-1], device=recall.device), current.unsqueeze(-1)
    forced = ((index < rule.init) | (index >= current - rule.local)) & (index <= current)
    picked = _greatest(recall, forced, index > current, rule.init + rule.local + (rule.recalled or rule.free))
    if rule.recalled is not None:
        if importance is None:
            raise ValueError(f"recalled={rule.recalled} leaves blocks to importance, and none is given")
        wanted = torch.zeros_like(recall, dtype=torch.bool).scatter_(-1, picked, True)
        picked = _greatest(importance.expand_as(recall), forced | wanted, index > current, rule.blocks)
    beyond = len(index)
    lists = picked.masked_fill(picked > current, beyond).sort(dim=-1).values
    return lists.masked_fill(lists == beyond, -1).int()


def _greatest(scores: Tensor, first: Tensor, never: Tensor, count: int) -> Tensor:
    """Places of the `count` greatest `scores`, those in `first` before all others, in `never` after."""
    least = torch.finfo(scores.dtype).min
    # What has no score yet comes before what must not be read.
    scores = scores.clamp(min=least).masked_fill(first, torch.inf).masked_fill(never, -torch.inf)
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def sequence_lists(
    query: Tensor, keys: Tensor, importance: Tensor | None, rule: BlockRule, *, scale: float
) -> Tensor:
    """The blocks that the last Q tokens of a sequence read in decode steps, int32 `[B, Hkv, Q, K]`.

    Args:
        query: `[B, H, Q, D]`, after RoPE, of the last Q tokens.
        keys: `[B, Hkv, N, D]`, after RoPE.
        importance: `[B, Hkv, N]`; None where the rule has no `recalled`.
        scale: what products are multiplied by.
    """
    heads, tokens, strides = keys.shape[1], keys.shape[2], rule.block // rule.stride
    means = window_means(keys, rule.stride)
    matter = None if importance is None else window_means(importance.unsqueeze(-1), rule.stride).squeeze(-1)
    grouped, blocks = query.unflatten(1, (heads, -1)), -(-tokens // rule.block)
    step = max(1, _CHUNK // max(1, query.shape[0] * query.shape[1] * means.shape[2]))
    lists, ends = [], torch.arange(tokens - query.shape[2], tokens, device=keys.device) + 1
    for begin in range(0, len(ends), step):
        seen = ends[begin : begin + step]
        visible = visible_windows(seen, means.shape[2], rule.stride)
        logits = grouped[:, :, :, begin : begin + step].float() @ means.unsqueeze(2).mT * scale
        recall = by_block(window_shares(logits, visible), visible, blocks, strides)
        static = None
        if matter is not None:
            static = by_block(matter.unsqueeze(2).expand(-1, -1, len(seen), -1), visible, blocks, strides)
        lists.append(block_lists(recall, static, (seen - 1) // rule.block, rule))
    return torch.cat(lists, dim=2)
