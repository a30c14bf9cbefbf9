"""Decode steps of fixed size, which a GPU can replay (CUDA graphs).

In an ordinary step Python numbers say how long the cache is, so the work of the next step is another one.
Here the length is on the device, in a `DecodePosition` that all layers share; memory for what is still to
come is reserved beforehand; and nothing waits for the device.

Legend: B batch, H query heads, Hkv KV heads, D head size, N tokens there is room for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor

from keyhole.attention import Logits, Part, add_sink_logits, merge
from keyhole.cache.base import Observation, Observer
from keyhole.cache.decode_step import StepBudget
from keyhole.cache.layer import LayerCache
from keyhole.cache.position import DecodePosition
from keyhole.core.errors import NonFiniteError
from keyhole.selection import Capturable, Step
from keyhole.storage import CapturableStorage, Footprint


class CapturedLayer:
    """Stands for a layer cache while its decode steps are of fixed size; `release` hands back what came.

    A budget that is a share of the context is that of the longest one there is room for. Codebooks are not
    fitted again, nothing is compressed, and only when the steps are over tokens are looked at for NaN.

    Raises:
        ValueError: the layer's method, or its storage, has no steps of fixed size; it is left as it was.
    """

    def __init__(self, layer: LayerCache, position: DecodePosition) -> None:
        check_capturable(layer, position)
        assert isinstance(layer.storage, CapturableStorage)
        self.layer, self.position, self.storage = layer, position, layer.storage
        self.request, self.usage = layer.request, layer.usage
        self.request.position = position
        self.selective, self.leads = layer.selects, layer.leads
        if self.selective:
            layer.prepare(_mask(position))
        self.storage.reserve(position.room)
        if self.selective:
            assert isinstance(layer.selector, Capturable)
            layer.selector.reserve(position.room)
        self.storage.extend(position.room)
        self._read = torch.zeros(
            2, device=position.slot.device
        )  # tokens read, and their mass, over all steps
        self._index_bytes = 0

    @property
    def length(self) -> int:
        """Tokens there were before the first step."""
        return self.position.length

    @property
    def newest(self) -> Tensor:
        """A token's keys, `[B, Hkv, 1, D]`."""
        return self.storage.keys(self.storage.length - 1)

    def crops_exactly(self, length: int) -> bool:  # noqa: ARG002
        """It is not cropped at all."""
        return False

    def arrive(self, tokens: int, generated: Callable[[], bool | None]) -> None:
        """Every step is a generated token; the position knows where it goes."""

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add `keys [B, Hkv, 1, D]`, after RoPE, and `values [B, Hkv, 1, D]` at the position's slot."""
        self.storage.put(keys, values, self.position.slot)
        self.position.finite &= torch.isfinite(keys).all() & torch.isfinite(values).all()

    def attend(self, query: Tensor, logits: Logits, *, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Attention of the newest token's `query [B, H, 1, D]`; the position knows what a mask would say."""
        query = query.squeeze(2)
        if self.leads:
            self._watch(query, logits)
        part = self._select(query, logits) if self.selective else self._attend_all(query, logits)
        return add_sink_logits(part, logits).out.unsqueeze(2)

    def rewind(self) -> None:
        """Count steps from here on."""
        self._read.zero_()

    def release(self, steps: int) -> None:
        """So many steps are over: their tokens are the layer cache's now, and a step may follow."""
        self.storage.crop(self.position.length + steps)
        if self.selective or self.leads:
            selector, reading = self._chooses
            selector.release(max(selector.length, self.storage.length - reading.window))
        if steps:
            self._record(steps)

        self.request.position = None
        if self.layer.place == 0:
            self.request.prompt_length = self.layer.length

    @property
    def footprint(self) -> Footprint:
        """Bytes held, by tier; tokens for which memory is reserved among them."""
        return self.layer.footprint

    def observe(self, observer: Observer) -> NoReturn:  # noqa: ARG002
        """Nothing of a step is handed out: a replayed graph calls no Python."""
        self._refuse("observed")

    @contextmanager
    def observed(self) -> Iterator[list[Observation]]:
        self._refuse("observed")
        yield []

    def prepare(self, mask: Tensor | None = None) -> None:
        """The index is up to date since the steps began."""

    def crop(self, length: int) -> NoReturn:  # noqa: ARG002
        self._refuse("cropped")

    def reorder(self, rows: Tensor) -> NoReturn:  # noqa: ARG002
        self._refuse("reordered")

    def state(self) -> NoReturn:
        self._refuse("saved")

    def restore(self, state: dict[str, Tensor], indexed: int) -> NoReturn:  # noqa: ARG002
        self._refuse("restored")

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"a cache cannot be {what} while its decode steps are captured; leave the block first"
        )

    @property
    def _chooses(self) -> tuple[Capturable, StepBudget]:
        """What chooses in this layer, or leads those that do."""
        selector, reading = self.layer.selector, self.layer.reading
        assert isinstance(selector, Capturable)
        assert reading is not None
        return selector, reading

    def _select(self, query: Tensor, logits: Logits) -> Part:
        selector, reading = self._chooses
        selector.place(self.storage, self.position.slot - reading.window)
        parts = self.position.regions(reading.sinks, reading.window)
        anchor = self.storage.attend(query, parts.always, parts.always_counts, logits)
        step = Step(query, self.storage, parts, logits.with_sinks(anchor.lse), logits, reading.budget)
        chosen = selector.select(step)
        self._index_bytes = selector.bytes_read(step) * chosen.counts.shape[1]
        found = self.storage.attend(query, chosen.slots, chosen.counts, logits)
        read = chosen.counts.float().mean() + parts.always.shape[1]
        self._read += torch.stack([read, chosen.mass.mean()])
        return merge(anchor, found)

    def _watch(self, query: Tensor, logits: Logits) -> None:
        selector, reading = self._chooses
        selector.watch(query, self.storage, self.position.regions(reading.sinks, reading.window), logits)

    def _attend_all(self, query: Tensor, logits: Logits) -> Part:
        return self.storage.attend(query, *self.position.everything, logits)

    def _record(self, steps: int) -> None:
        unused = sum(self.position.padding) / len(self.position.padding)
        context = self.position.length + (steps + 1) / 2 - unused
        read, mass = (self._read / steps).tolist() if self.selective else (context, 1.0)
        moved = read * self.storage.token_bytes + self._index_bytes
        self.layer.usage.record_steps(steps, context, read, mass, moved)


def release(layers: list[CapturedLayer], position: DecodePosition, steps: int) -> None:
    """So many steps are over: their tokens are the layer caches' now.

    Raises:
        NonFiniteError: NaN or infinity among them; the layer caches hold what they held before the steps.
    """
    finite = bool(position.finite)
    for layer in layers:
        layer.release(steps if finite else 0)
    if not finite:
        raise NonFiniteError(f"keys or values of tokens from {position.length} on hold NaN or infinity")


def check_capturable(layer: LayerCache, position: DecodePosition) -> None:
    """Raise ValueError unless a layer cache that holds a prompt has steps of fixed size."""
    why = _varying(layer, position)
    if why:
        raise ValueError(f"{layer.method} cannot be captured: {why}; decode without capturing")


def _varying(layer: LayerCache, position: DecodePosition) -> str:
    """What has no fixed size; empty if all has."""
    storage, selector, reading = layer.storage, layer.selector, layer.reading
    if layer.request.listener is not None:
        return "what it reads is recorded, and a replayed graph calls no Python"
    if type(layer) is not LayerCache:
        return "it drops tokens, so that slots move"
    if not isinstance(storage, CapturableStorage):
        return f"its keys and values do not lie on the device as they came, but in a {type(storage).__name__}"
    if storage.varying or selector is None or reading is None:
        return storage.varying
    if not isinstance(selector, Capturable):
        return f"the work of its {type(selector).__name__} follows from what that finds"
    if reading.budget.varies:
        return f"{reading.budget} reads a varying number of tokens; give tokens or a fraction as budget"
    shortest = position.length - max(position.padding)
    if (layer.selects or layer.leads) and shortest < reading.sinks + reading.window:
        return f"a row of {shortest} tokens has fewer than its sinks and window"
    return selector.varying


def _mask(position: DecodePosition) -> Tensor | None:
    """What the newest query sees, bool `[B, 1, 1, N]`; None is everything."""
    if not any(position.padding):
        return None
    slots = torch.arange(position.length, device=position.starts.device)
    return slots >= position.starts.view(-1, 1, 1, 1)
