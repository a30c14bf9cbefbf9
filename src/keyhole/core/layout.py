"""The parts of a sequence at a decode step: padding, sinks, what competes, window."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import at_hand
from keyhole.kernels.ranking.page_slots import scattered, width_of


class Regions(NamedTuple):
    """Where each part lies. Sinks and window are always read; slots in [first, stop) compete.

    Attributes:
        length: slots there are; where steps are of fixed size, that there is room for.
        padding: unused slots at the start of each batch row.
        context: tokens each batch row has seen, those that were evicted since among them.
        always: int32 `[B, A]`, the slots of sinks and window, ascending; filling after `always_counts`.
        always_counts: int32 `[B]`.
        first: int32 `[B]`.
        last: where the window begins; where steps are of fixed size, where it begins at the latest.
        stop: int32 `[B]`, where the window begins.
    """

    length: int
    padding: tuple[int, ...]
    context: tuple[int, ...]
    always: Tensor
    always_counts: Tensor
    first: Tensor
    last: int
    stop: Tensor

    @property
    def ends(self) -> Tensor:
        """Slots there are at this step, int32 `[B]` on the device."""
        return self.stop + (self.length - self.last)

    @property
    def starts(self) -> Tensor:
        """`padding` as int64 `[B]` on the device."""
        return on_device(self.padding, self.first.device)


@lru_cache(maxsize=16)
def regions(
    length: int,
    padding: tuple[int, ...],
    sinks: int,
    window: int,
    device: torch.device,
    context: tuple[int, ...] | None = None,
) -> Regions:
    """The parts of a sequence of `length` slots. All layers of a step ask the same, so answers are kept.

    Where tokens were evicted, sinks and window are counted among those kept, and `context` says how many
    there were; else it is what a row holds.
    """
    context = tuple(length - unused for unused in padding) if context is None else context
    starts = torch.tensor(padding, dtype=torch.int32)
    last = max(length - window, 0)
    window_start = starts.clamp(min=last)
    first = torch.minimum(starts + sinks, window_start)
    sink_counts = (first - starts).unsqueeze(1)
    counts = sink_counts + length - window_start.unsqueeze(1)
    index = torch.arange(int(counts.max()), dtype=torch.int32).expand(len(padding), -1)
    after_sinks = window_start.unsqueeze(1) + index - sink_counts
    slots = torch.where(index < sink_counts, starts.unsqueeze(1) + index, after_sinks)
    slots = slots.clamp(max=length - 1)
    stop = torch.full_like(first, last)
    slots, counts, first, stop = (
        tensor.int().to(device) for tensor in (slots, counts.squeeze(1), first, stop)
    )
    return Regions(length, padding, context, slots, counts, first, last, stop)


def left_padding(mask: Tensor, batch: int, *, empty: bool = False) -> tuple[int, ...]:
    """Unused slots at the start of each of `batch` rows, by the newest token's mask `[B or 1, 1, 1, N]`.

    Args:
        empty: whether a row may be all padding, as it may in the first pieces of a prompt.

    Raises:
        ValueError: slots are masked elsewhere than at the start.
    """
    seen = mask[:, 0, -1]
    padding = (~seen).sum(-1)
    begins = seen.int().argmax(-1)
    if empty:
        begins = torch.where(seen.any(-1), begins, seen.shape[-1])
    if not torch.equal(padding, begins):
        raise ValueError(
            "the attention mask hides tokens inside the sequence; Keyhole takes batches padded on the left, "
            "so set tokenizer.padding_side = 'left'"
        )
    return tuple(padding.expand(batch).tolist())


@lru_cache(maxsize=64)
def on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Int64 `[B]`. Kept, for layers and steps ask for the same, and a copy to a GPU makes its host wait."""
    return torch.tensor(numbers, device=device)


def packed_slots(wanted: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
    """The slots where `wanted [B, Hkv, N]` holds, ascending: int32 `[B, Hkv, S]`, and counts `[B, Hkv]`.

    Where a row is known to have no more than `most`, nothing waits for a device: S is as many there.
    """
    counts = wanted.sum(-1)
    if most is None or at_hand(wanted):
        index = torch.arange(width_of(counts), device=wanted.device)
        slots = torch.zeros(*counts.shape, len(index), dtype=torch.int32, device=wanted.device)
        slots[index < counts.unsqueeze(-1)] = wanted.nonzero()[:, -1].int()
        return slots, counts.int()
    places = (wanted.cumsum(-1) - 1).masked_fill(~wanted, most)
    index = torch.arange(wanted.shape[-1], device=wanted.device)
    return scattered(index.expand(wanted.shape), places, max(1, most)), counts.int()
