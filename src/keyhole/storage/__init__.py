"""Place: where kept keys and values live, and in which form."""

from keyhole.storage.base import CapturableStorage, Footprint, Lookups, Storage
from keyhole.storage.biased import BiasedStorage
from keyhole.storage.chosen import ROOM, Chosen, kept_rows
from keyhole.storage.device import DeviceStorage
from keyhole.storage.lowrank import LowRankStorage
from keyhole.storage.merging import Merge, Merging, NewValues
from keyhole.storage.paged import PagedStorage
from keyhole.storage.pages import Pages, split_pages
from keyhole.storage.pinned import PinnedStorage
from keyhole.storage.places import KV_DTYPES, PLACES, RESIDENT, ROTATIONS, make_rows, make_storage
from keyhole.storage.pooled import PooledStorage
from keyhole.storage.renumbered import RenumberedStorage
from keyhole.storage.resident.blocks import BLOCK_EVICTIONS
from keyhole.storage.resident.rows import ResidentRows
from keyhole.storage.tiers.buffer import GrowingBuffer
from keyhole.storage.tiers.memory import into_huge_pages

__all__ = [
    "BLOCK_EVICTIONS",
    "KV_DTYPES",
    "PLACES",
    "RESIDENT",
    "ROOM",
    "ROTATIONS",
    "BiasedStorage",
    "CapturableStorage",
    "Chosen",
    "DeviceStorage",
    "Footprint",
    "GrowingBuffer",
    "Lookups",
    "LowRankStorage",
    "Merge",
    "Merging",
    "NewValues",
    "PagedStorage",
    "Pages",
    "PinnedStorage",
    "PooledStorage",
    "RenumberedStorage",
    "ResidentRows",
    "Storage",
    "into_huge_pages",
    "kept_rows",
    "make_rows",
    "make_storage",
    "split_pages",
]
