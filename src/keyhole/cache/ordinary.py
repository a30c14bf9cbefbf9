"""Decode steps that one native call can compute for all layers of a cache, attention included.

Such a step is of one token for each of a few rows without padding, over keys and values in full precision on
a CPU, of which everything is read, or what product-quantiser codes choose. `LayerCache` answers all others,
and defines what these give.
"""

from __future__ import annotations

from weakref import ref

from keyhole.attention import Logits
from keyhole.cache.decode_step import StepReader
from keyhole.cache.layer import LayerCache
from keyhole.kernels.decoder.types import DecoderSizes
from keyhole.kernels.decoder.whole import Reads, serves
from keyhole.kernels.pq.step import PreparedScan
from keyhole.selection.product import ProductSelector
from keyhole.storage.device import DeviceStorage

# What a step of a reader follows from. Whatever else one may come to have is not known here.
_READER = {"selector", "reading", "request", "place"}
_READING = ("budget", "sinks", "window", "dense_below")


class OrdinaryLayer:
    """One layer in such steps, as long as it `fits`; it keeps no memory alive that the layer lets go.

    Attributes:
        budget: slots that the next step chooses; 0 where it reads everything.
    """

    def __init__(self, layer: LayerCache, storage: DeviceStorage, reads: Reads) -> None:
        self.layer, self.storage, self.budget = layer, storage, 0
        self._held = ref(reads.held)
        self._index = None if reads.index is None else ref(reads.index)
        self._batch, self._heads, self._room, _ = reads.held.keys.shape
        self._token_bytes = storage.token_bytes

    def fits(self, length: int, batch: int) -> bool:
        """Whether the step to `length` tokens of so many rows is as foreseen; sets `budget`."""
        layer, storage = self.layer, self.storage
        if (
            layer.storage is not storage
            or storage.attention is not self._held()
            or not storage.length + 1 == length <= self._room
            or batch != self._batch
            or layer._torn
        ):
            return False
        reader = layer._reader
        if reader is None:
            return True
        if reader.wants_all(length, length, batch):
            return self._index is None and not reader.leads(length, batch)
        found = None if layer._observers else _index(reader, length)
        if found is None or self._index is None or found is not self._index():
            return False
        self.budget = reader.reading.budget.limit(length)
        return True

    def took(self, length: int, counts: list[int], masses: list[float]) -> None:
        """The step to `length` tokens was taken.

        Args:
            counts, masses: of each row, where slots were chosen.
        """
        layer, read, mass, index_bytes = self.layer, float(length), 1.0, 0
        reader = layer._reader
        if self._index is not None and reader is not None and isinstance(reader.selector, ProductSelector):
            last = max(length - reader.reading.window, 0)
            read = sum(counts) / len(counts) + min(reader.reading.sinks, last) + length - last
            mass, index_bytes = sum(masses) / len(masses), reader.selector.index_bytes(last) * self._heads
        with layer._changing():
            self.storage.extend(length)
        layer._batch = self._batch
        layer.usage.record_steps(1, length, read, mass, read * self._token_bytes + index_bytes)


def ordinary(layer: LayerCache, logits: Logits, sizes: DecoderSizes) -> tuple[OrdinaryLayer, Reads] | None:
    """A layer's steps as they are now; None where `LayerCache` has to answer."""
    storage = layer.storage
    plain = type(layer) is LayerCache and type(storage) is DeviceStorage and storage.length > 0
    held = storage.attention if plain and isinstance(storage, DeviceStorage) else None
    if held is None or not serves(sizes, held) or logits[1:] != (None, None):
        return None
    assert isinstance(storage, DeviceStorage)
    reads, reader, length = Reads(held, logits.scale), layer._reader, storage.length + 1
    if reader is not None and not reader.wants_all(length, length, held.keys.shape[0]):
        index = _index(reader, length)
        if index is None or not isinstance(reader.selector, ProductSelector):
            return None
        reading, largest = reader.reading, reader.selector.largest(logits.scale)
        reads = Reads(held, logits.scale, index, largest, reading.sinks, reading.window)
    return OrdinaryLayer(layer, storage, reads), reads


def _index(reader: StepReader, length: int) -> PreparedScan | None:
    """What chooses by codes, where nothing has to be indexed before, and nothing else is asked of a step."""
    selector, reading = reader.selector, reader.reading
    known = vars(reader).keys() == _READER and reading._fields == _READING
    if not known or type(selector) is not ProductSelector or reading.budget.varies:
        return None
    indexed = selector.length >= length - reading.window and selector.length > 0 and not selector.stale
    return selector.scan() if indexed else None
