"""Decode steps of fixed size, which a GPU can replay without being told anything anew (CUDA graphs).

In an ordinary step Python numbers say how long the cache is, so the work of the next step is another one.
Here the length lies on the device, in a `Clock` that all layers of a model share; memory for what is still to
come is reserved beforehand; and nothing waits for the device.

Legend: B batch, H query heads, Hkv KV heads, D head size, A always-read slots, N tokens there is room for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.attention import Logits, Part, add_sink_logits, attend_slots, merge
from keyhole.errors import NonFiniteError
from keyhole.layer import LayerCache
from keyhole.reader import Reading
from keyhole.regions import Regions
from keyhole.selection import Capturable, Step
from keyhole.storage import DeviceStorage


class Clock:
    """Where a step's token goes, for all layers of a request.

    Args:
        length: tokens there are, padding among them.
        room: tokens for which memory is to be there.
        padding: unused slots at the start of each batch row.
    """

    def __init__(self, length: int, room: int, padding: tuple[int, ...], device: torch.device) -> None:
        self.length, self.room, self.padding = length, room, padding
        self.slot = torch.tensor([length], device=device)
        self.starts = torch.tensor(padding, dtype=torch.int32, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self._regions: dict[tuple[int, int], Regions] = {}

    @property
    def positions(self) -> Tensor:
        """Position `[B, 1]` of the step's token in each batch row."""
        return self.slot - self.starts.long().unsqueeze(1)

    def regions(self, reading: Reading) -> Regions:
        """The parts of the sequence at this step; layers that ask alike are given the same."""
        asked = reading.sinks, reading.window
        if asked not in self._regions:
            self._regions[asked] = self._parts(*asked)
        return self._regions[asked]

    def _parts(self, sinks: int, window: int) -> Regions:
        device, batch = self.slot.device, len(self.padding)
        stop = (self.slot + 1 - window).int().repeat(batch)
        first = self.starts + sinks
        always = torch.cat(
            [
                self.starts.unsqueeze(1) + torch.arange(sinks, dtype=torch.int32, device=device),
                stop.unsqueeze(1) + torch.arange(window, dtype=torch.int32, device=device),
            ],
            dim=1,
        )
        counts = torch.full((batch,), sinks + window, dtype=torch.int32, device=device)
        context = tuple(self.room - unused for unused in self.padding)
        return Regions(self.room, self.padding, context, always, counts, first, self.room - window, stop)

    def advance(self) -> None:
        """The step is over, in all layers."""
        self.slot += 1
        self.forget()

    def forget(self) -> None:
        """Compute the parts of the sequence anew when they are asked for."""
        self._regions.clear()

    def rewind(self) -> None:
        """To the first step; what was written since is written again."""
        self.slot.fill_(self.length)
        self.finite.fill_(True)


class CapturedLayer:
    """Stands for a layer cache while its decode steps are of fixed size; `release` hands back what came.

    A budget that is a share of the context is that of the longest one there is room for. Codebooks are not
    fitted anew. Tokens are not looked at for NaN one by one, but when the steps are over.

    Raises:
        ValueError: the layer's method, or its storage, has no steps of fixed size; it is left as it was.
    """

    def __init__(self, layer: LayerCache, clock: Clock) -> None:
        check_capturable(layer, clock)
        assert isinstance(layer.storage, DeviceStorage)
        self.layer, self.clock = layer, clock
        self.selective = layer.selects
        if self.selective:
            layer.prepare(_mask(clock))
        self.keys, self.values = layer.storage.reserve(clock.room)
        if self.selective:
            assert isinstance(layer.selector, Capturable)
            layer.selector.reserve(clock.room)
        self._everything = torch.arange(clock.room, dtype=torch.int32, device=self.keys.device)
        self._read = torch.zeros(2, device=self.keys.device)  # tokens read, and their mass, summed over steps
        self._index_bytes = 0

    @property
    def length(self) -> int:
        """Tokens there were before the first step."""
        return self.clock.length

    @property
    def newest(self) -> Tensor:
        """A token's keys, `[B, Hkv, 1, D]`."""
        return self.keys[:, :, :1]

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add `keys [B, Hkv, 1, D]`, after RoPE, and `values [B, Hkv, 1, D]` at the clock's slot."""
        self.keys.index_copy_(2, self.clock.slot, keys.to(self.keys.dtype))
        self.values.index_copy_(2, self.clock.slot, values.to(self.values.dtype))
        self.clock.finite &= torch.isfinite(keys).all() & torch.isfinite(values).all()

    def attend(self, query: Tensor, logits: Logits, *, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Attention of the newest token's `query [B, H, 1, D]`; the clock knows what a mask would say."""
        query = query.squeeze(2)
        part = self._select(query, logits) if self.selective else self._attend_all(query, logits)
        return add_sink_logits(part, logits).out.unsqueeze(2)

    def rewind(self) -> None:
        """Count steps from here on."""
        self._read.zero_()

    def release(self, steps: int) -> None:
        """So many steps are over: their tokens are the layer cache's now.

        Raises:
            NonFiniteError: NaN or infinity among them; the layer cache is as it was before the first step.
        """
        storage, selector = self.layer.storage, self.layer.selector
        assert isinstance(storage, DeviceStorage)
        if not bool(self.clock.finite):
            raise NonFiniteError(f"keys or values of tokens from {self.clock.length} on hold NaN or infinity")
        storage.extend(steps)
        if selector is not None and self.layer.reading is not None and self.selective:
            selector.length = max(selector.length, storage.length - self.layer.reading.window)
        self._record(steps)

    def _select(self, query: Tensor, logits: Logits) -> Part:
        selector, reading = self.layer.selector, self.layer.reading
        assert isinstance(selector, Capturable)
        assert reading is not None
        leaving = self.clock.slot - reading.window
        selector.place(self.keys.index_select(2, leaving), leaving)
        parts = self.clock.regions(reading)
        anchor = attend_slots(query, self.keys, self.values, parts.always, parts.always_counts, logits)
        step = Step(query, self.layer.storage, parts, logits.with_sinks(anchor.lse), logits, reading.budget)
        chosen = selector.select(step)
        self._index_bytes = selector.bytes_read(step) * self.keys.shape[1]
        found = attend_slots(query, self.keys, self.values, chosen.slots, chosen.counts, logits)
        read = chosen.counts.float().mean() + parts.always.shape[1]
        self._read += torch.stack([read, chosen.mass.mean()])
        return merge(anchor, found)

    def _attend_all(self, query: Tensor, logits: Logits) -> Part:
        batch = len(self.clock.padding)
        slots = self._everything + self.clock.starts.unsqueeze(1)
        counts = (self.clock.slot + 1 - self.clock.starts).expand(batch)
        return attend_slots(query, self.keys, self.values, slots, counts.int(), logits)

    def _record(self, steps: int) -> None:
        unused = sum(self.clock.padding) / len(self.clock.padding)
        context = self.clock.length + (steps + 1) / 2 - unused
        read, mass = (self._read / max(steps, 1)).tolist() if self.selective else (context, 1.0)
        moved = read * self.layer.storage.token_bytes + self._index_bytes
        self.layer.usage.record_steps(steps, context, read, mass, moved)


def check_capturable(layer: LayerCache, clock: Clock) -> None:
    """Raise ValueError unless a layer cache that holds a prompt has steps of fixed size."""
    storage, selector, reading = layer.storage, layer.selector, layer.reading
    if type(layer) is not LayerCache or type(storage) is not DeviceStorage:
        raise _refused("where tokens are dropped, or stored elsewhere than on the device or in another form")
    if selector is None or reading is None:
        return
    if not isinstance(selector, Capturable):
        raise _refused(f"by a {type(selector).__name__}, whose work follows from what it finds")
    if reading.budget.mass is not None:
        raise _refused(f"of budgets by mass ({reading.budget}); give tokens or a share")
    shortest = clock.length - max(clock.padding)
    if layer.selects and shortest < reading.sinks + reading.window:
        raise _refused(f"of {shortest} tokens, fewer than sinks and window have")


def _refused(what: str) -> ValueError:
    return ValueError(f"there are no decode steps of fixed size {what}; decode without capturing")


def _mask(clock: Clock) -> Tensor | None:
    """What the newest query sees, bool `[B, 1, 1, N]`; None is everything."""
    if not any(clock.padding):
        return None
    slots = torch.arange(clock.length, device=clock.starts.device)
    return slots >= clock.starts.view(-1, 1, 1, 1)
