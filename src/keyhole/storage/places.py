"""Storages by the words users type."""

from __future__ import annotations

from keyhole.storage.base import Storage
from keyhole.storage.buffer import SPARE, Buffer, GrowingBuffer, HostBuffer
from keyhole.storage.disk import DiskBuffer
from keyhole.storage.fetched import FetchedRows
from keyhole.storage.form import Form, Full
from keyhole.storage.placed import PlacedStorage
from keyhole.storage.quantised import Quantised
from keyhole.storage.resident import BLOCK, ResidentBlocks

PLACES = ("device", "host", "disk")
PRECISIONS = ("full", "int8", "int4")


def make_storage(where: str, precision: str, cache: int = 0, eviction: str = "lfu") -> Storage:
    """A storage on one of PLACES, in one of PRECISIONS, with `cache` bytes of resident blocks in front.

    Fewer bytes than a block of 128 tokens takes, all heads and batch rows of it, serve no read.
    """
    form: Form = Full() if precision == "full" else Quantised(int(precision.removeprefix("int")))
    return PlacedStorage(form, _buffer(where, form.group), _resident(cache, eviction, form.group))


def make_rows(where: str, cache: int = 0, eviction: str = "lfu") -> FetchedRows:
    """Rows of single tokens on one of PLACES, resident blocks as in `make_storage`."""
    return FetchedRows(_buffer(where, 1), _resident(cache, eviction, 1))


def _buffer(where: str, group: int) -> Buffer:
    if where == "disk":
        return DiskBuffer(BLOCK // group)
    kind = HostBuffer if where == "host" else GrowingBuffer
    return kind(SPARE // group)


def _resident(cache: int, eviction: str, group: int) -> ResidentBlocks | None:
    return ResidentBlocks(cache, eviction, group) if cache else None
