"""Place: where kept keys and values live, and in which form."""

from keyhole.storage.base import Footprint, Storage
from keyhole.storage.buffer import GrowingBuffer
from keyhole.storage.device import DeviceStorage

__all__ = ["DeviceStorage", "Footprint", "GrowingBuffer", "Storage"]
