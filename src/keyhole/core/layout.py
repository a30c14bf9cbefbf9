"""The parts of a sequence at a decode step: padding, sinks, what competes, window."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import at_hand
from keyhole.kernels.ranking.page_slots import scattered, width_of

_CONSTANTS = 64


class Constants:
    """Small tensors that layers and steps of one request ask for again and again.

    A copy to a GPU makes its host wait, and none may happen while a graph is captured.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    def on(self, device: torch.device, numbers: tuple[int, ...]) -> Tensor:
        """Int64 `[len(numbers)]` on a device."""
        key = numbers, device
        if key not in self._held:
            if len(self._held) >= _CONSTANTS:
                self._held.clear()
            self._held[key] = torch.tensor(numbers, device=device)
        return self._held[key]


@dataclass(frozen=True, eq=False)
class Regions:
    """Where each part is. Sinks and window are always read; slots in [first, stop) compete.

    Attributes:
        length: slots there are; where steps are of fixed size, that there is room for.
        padding: unused slots at the start of each batch row.
        context: tokens each batch row has seen, those that were evicted since among them.
        always: int32 `[B, A]`, the slots of sinks and window, ascending; filling after `always_counts`.
        always_counts: int32 `[B]`.
        first: int32 `[B]`.
        last: where the window begins; where steps are of fixed size, where it begins at the latest.
        stop: int32 `[B]`, where the window begins.
        hidden: bool `[B, length]`, slots behind the padding that must not be read; None where there are none.
    """

    length: int
    padding: tuple[int, ...]
    context: tuple[int, ...]
    always: Tensor
    always_counts: Tensor
    first: Tensor
    last: int
    stop: Tensor
    hidden: Tensor | None = None
    constants: Constants = field(default_factory=Constants)
    # Not an argument, so that `replace` makes regions that share nothing with those they came of.
    _derived: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def always_by_head(self, heads: int) -> tuple[Tensor, Tensor]:
        """`always` and `always_counts` for each KV head, int32 `[B, Hkv, A]` and `[B, Hkv]`."""

        def make() -> tuple[Tensor, Tensor]:
            slots = self.always.unsqueeze(1).expand(-1, heads, -1).contiguous()
            return slots, self.always_counts.unsqueeze(1).expand(-1, heads).contiguous()

        return self.derived(("always", heads), make)

    def derived(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What follows from the regions alone, made once for all layers of a step; not to be written to."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]

    @property
    def ends(self) -> Tensor:
        """Slots there are at this step, int32 `[B]` on the device."""
        return self.stop + (self.length - self.last)

    @property
    def starts(self) -> Tensor:
        """`padding` as int64 `[B]` on the device."""
        return self.on_device(self.padding)

    def on_device(self, numbers: tuple[int, ...]) -> Tensor:
        """Int64 tensor of a few numbers, on the device of the regions."""
        return self.constants.on(self.first.device, numbers)


def regions(
    length: int,
    padding: tuple[int, ...],
    sinks: int,
    window: int,
    device: torch.device,
    context: tuple[int, ...] | None = None,
    hidden: Tensor | None = None,
    constants: Constants | None = None,
) -> Regions:
    """The parts of a sequence of `length` slots.

    Where tokens were evicted, sinks and window are counted among those kept, and `context` says how many
    there were; else it is what a row holds. Slots that are `hidden` are in no part that is always read.
    """
    context = tuple(length - unused for unused in padding) if context is None else context
    last = max(length - window, 0)
    rows = [_row(length, unused, sinks, last) for unused in padding]
    # One copy to the device for all numbers of a row.
    table = torch.tensor(list(zip(*rows, strict=True)), dtype=torch.int32).to(device)
    first, counts, sink_counts, starts, shifts = table
    index = torch.arange(max(row.count for row in rows), dtype=torch.int32, device=device)
    among_sinks = index < sink_counts.unsqueeze(1)
    slots = index + torch.where(among_sinks, starts.unsqueeze(1), shifts.unsqueeze(1))
    slots = slots.clamp(max=length - 1)
    stop = torch.full_like(first, last)
    if hidden is not None:
        slots, counts = visible_slots(slots, counts, hidden)
    constants = Constants() if constants is None else constants
    return Regions(length, padding, context, slots, counts, first, last, stop, hidden, constants)


class _Row(NamedTuple):
    """The always-read slots of a row: from `start` on, and from the sinks on `shift` further."""

    first: int
    count: int
    sinks: int
    start: int
    shift: int


def _row(length: int, start: int, sinks: int, last: int) -> _Row:
    window = max(start, last)
    first = min(start + sinks, window)
    return _Row(first, first - start + length - window, first - start, start, window - (first - start))


def visible_slots(slots: Tensor, counts: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Those of `slots [B, ..., S]`, the first `counts [B, ...]` of each row, that are not `hidden [B, N]`.

    Their order stays; filling comes last.
    """
    rows = hidden.view(len(hidden), *(1,) * (slots.dim() - 2), -1).expand(*slots.shape[:-1], -1)
    index = torch.arange(slots.shape[-1], device=slots.device)
    gone = rows.gather(-1, slots.long()) | (index >= counts.unsqueeze(-1))
    order = gone.sort(dim=-1, stable=True).indices
    return slots.gather(-1, order), (~gone).sum(-1).int()


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
