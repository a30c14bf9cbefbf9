"""Place: where kept keys and values live, and in which form."""

from keyhole.storage.base import CapturableStorage, Footprint, Lookups, Storage
from keyhole.storage.chosen import ROOM, Chosen, kept_rows
from keyhole.storage.device import DeviceStorage
from keyhole.storage.hot import HotStorage
from keyhole.storage.lowrank import LowRankStorage
from keyhole.storage.places import PLACES, PRECISIONS, make_rows, make_storage
from keyhole.storage.pooled import PooledStorage
from keyhole.storage.renumbered import RenumberedStorage
from keyhole.storage.resident.blocks import EVICTIONS
from keyhole.storage.resident.hot_rows import HotRows
from keyhole.storage.tiers.buffer import GrowingBuffer

__all__ = [
    "EVICTIONS",
    "PLACES",
    "PRECISIONS",
    "ROOM",
    "CapturableStorage",
    "Chosen",
    "DeviceStorage",
    "Footprint",
    "GrowingBuffer",
    "HotRows",
    "HotStorage",
    "Lookups",
    "LowRankStorage",
    "PooledStorage",
    "RenumberedStorage",
    "Storage",
    "kept_rows",
    "make_rows",
    "make_storage",
]
