"""Retain: which tokens are kept at all."""

from keyhole.retention.base import Retention
from keyhole.retention.everything import KeepEverything

__all__ = ["KeepEverything", "Retention"]
