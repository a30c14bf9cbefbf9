"""Storages by the words users type."""

from __future__ import annotations

import torch

from keyhole.storage.base import Storage
from keyhole.storage.formats.base import Form, Full
from keyhole.storage.formats.quantised import Quantised
from keyhole.storage.hot import HotStorage
from keyhole.storage.placed import PlacedStorage
from keyhole.storage.resident.blocks import BLOCK, ResidentBlocks
from keyhole.storage.resident.fetched import FetchedRows
from keyhole.storage.resident.hot_rows import HotRows
from keyhole.storage.tiers.buffer import SPARE, Buffer, GrowingBuffer, HostBuffer
from keyhole.storage.tiers.disk import DiskBuffer

PLACES = ("device", "host", "disk")
PRECISIONS = ("full", "int8", "int4")


def make_storage(
    where: str,
    precision: str,
    cache: int = 0,
    eviction: str = "lfu",
    device: torch.device | None = None,
    window: int = 0,
) -> Storage:
    """A storage on one of PLACES, in one of PRECISIONS, with `cache` bytes in front of another place's.

    For keys in full precision of a GPU, host memory is read past a hot buffer of single tokens that the GPU
    runs (`HotRows`), `window` tokens of it the newest. Else there are resident blocks that the host chooses:
    fewer bytes than a block of 128 tokens takes, all heads and batch rows of it, serve no read.

    Args:
        device: where keys and values will come from; None is a CPU.
    """
    if precision == "full" and _by_the_device(where, device):
        return HotStorage(HotRows(cache, window))
    form: Form = Full() if precision == "full" else Quantised(int(precision.removeprefix("int")))
    return PlacedStorage(form, _buffer(where, form.group), _resident(cache, eviction, form.group))


def make_rows(
    where: str,
    cache: int = 0,
    eviction: str = "lfu",
    device: torch.device | None = None,
    window: int = 0,
) -> FetchedRows | HotRows:
    """Rows of single tokens on one of PLACES, with a hot buffer or resident blocks as in `make_storage`."""
    if _by_the_device(where, device):
        return HotRows(cache, window)
    return FetchedRows(_buffer(where, 1), _resident(cache, eviction, 1))


def _by_the_device(where: str, device: torch.device | None) -> bool:
    return where == "host" and device is not None and device.type == "cuda"


def _buffer(where: str, group: int) -> Buffer:
    if where == "disk":
        return DiskBuffer(BLOCK // group)
    kind = HostBuffer if where == "host" else GrowingBuffer
    return kind(SPARE // group)


def _resident(cache: int, eviction: str, group: int) -> ResidentBlocks | None:
    return ResidentBlocks(cache, eviction, group) if cache else None
