"""Storages by the words users type."""

from __future__ import annotations

from keyhole.storage.base import Storage
from keyhole.storage.buffer import SPARE, Buffer, GrowingBuffer, HostBuffer
from keyhole.storage.disk import DiskBuffer
from keyhole.storage.form import Form, Full
from keyhole.storage.placed import PlacedStorage
from keyhole.storage.quantised import Quantised
from keyhole.storage.resident import BLOCK, ResidentBlocks

PLACES = ("device", "host", "disk")
PRECISIONS = ("full", "int8", "int4")


def make_storage(where: str, precision: str, cache: int = 0, eviction: str = "lfu") -> Storage:
    """A storage on one of PLACES, in one of PRECISIONS, with `cache` bytes of resident blocks in front.

    Whether that holds a block is known at the first read, which raises ValueError if not.
    """
    form: Form = Full() if precision == "full" else Quantised(int(precision.removeprefix("int")))
    resident = ResidentBlocks(cache, eviction, form.group) if cache else None
    return PlacedStorage(form, _buffer(where, form), resident)


def _buffer(where: str, form: Form) -> Buffer:
    if where == "disk":
        return DiskBuffer(BLOCK // form.group)
    kind = HostBuffer if where == "host" else GrowingBuffer
    return kind(SPARE // form.group)
