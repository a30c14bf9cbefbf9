"""Storages by the words users type."""

from __future__ import annotations

import torch

from keyhole.storage.base import Storage
from keyhole.storage.formats.base import Form, Full
from keyhole.storage.formats.blocks import Blocks
from keyhole.storage.formats.quantised import Quantised
from keyhole.storage.pinned import PinnedStorage
from keyhole.storage.placed import PlacedStorage
from keyhole.storage.resident.blocks import BLOCK, ResidentBlocks
from keyhole.storage.resident.fetched import FetchedRows
from keyhole.storage.resident.rows import ResidentRows
from keyhole.storage.resident.slots import ResidentSlots
from keyhole.storage.tiers.buffer import SPARE, Buffer, GrowingBuffer
from keyhole.storage.tiers.disk import DiskBuffer
from keyhole.storage.tiers.host import HostBuffer

PLACES = ("device", "host", "disk")
RESIDENT = ("blocks", "slots")
KV_DTYPES = ("auto", "int8", "int4", "int3", "int2")  # "auto" is the type of the model
ROTATIONS = ("auto", "none", "hadamard")


def make_storage(
    where: str,
    kv_dtype: str,
    block_cache: int = 0,
    block_eviction: str = "lfu",
    device: torch.device | None = None,
    window: int = 0,
    slot_tokens: int = 0,
    rotation: str = "auto",
) -> Storage:
    """A storage on one of PLACES, in one of KV_DTYPES, with `block_cache` bytes in front of another place's.

    For unquantised keys of a GPU, host memory is read past a resident buffer of single tokens that the GPU
    runs (`ResidentRows`), `window` tokens of it the newest. Else the host chooses resident blocks:
    fewer bytes than a block of 128 tokens takes, all heads and batch rows of it, serve no read.

    Args:
        device: where keys and values will come from; None is a CPU.
        slot_tokens: in place of shared blocks, have `ResidentSlots` of blocks of so many tokens; a packed
            form has rows of its own.
        rotation: one of ROTATIONS, before keys and values are quantised; "auto" is "hadamard" below 8 bits.
    """
    if kv_dtype == "auto" and _by_the_device(where, device):
        return PinnedStorage(ResidentRows(block_cache, window))
    form = Full() if kv_dtype == "auto" else _quantised(int(kv_dtype.removeprefix("int")), rotation)
    if slot_tokens and where != "device":
        form = Blocks(slot_tokens) if form.in_place else form
        return PlacedStorage(form, _buffer(where, form.group), ResidentSlots(block_cache, form.group))
    return PlacedStorage(form, _buffer(where, form.group), _resident(block_cache, block_eviction, form.group))


def make_rows(
    where: str,
    block_cache: int = 0,
    block_eviction: str = "lfu",
    device: torch.device | None = None,
    window: int = 0,
) -> FetchedRows | ResidentRows:
    """Rows of single tokens on one of PLACES, with resident rows or blocks as in `make_storage`."""
    if _by_the_device(where, device):
        return ResidentRows(block_cache, window)
    return FetchedRows(_buffer(where, 1), _resident(block_cache, block_eviction, 1))


def _quantised(bits: int, rotation: str) -> Form:
    return Quantised(bits, rotated=rotation == "hadamard" or (rotation == "auto" and bits < 8))


def _by_the_device(where: str, device: torch.device | None) -> bool:
    return where == "host" and device is not None and device.type == "cuda"


def _buffer(where: str, group: int) -> Buffer:
    if where == "disk":
        return DiskBuffer(max(1, BLOCK // group))
    kind = HostBuffer if where == "host" else GrowingBuffer
    return kind(max(1, SPARE // group))


def _resident(nbytes: int, eviction: str, group: int) -> ResidentBlocks | None:
    return ResidentBlocks(nbytes, eviction, group) if nbytes else None
