"""Retain: which tokens are kept at all."""

from keyhole.retention.accumulated import Accumulated, NoiseSource, Schedule
from keyhole.retention.base import Keeping, Picker, Retention, Scorer, Seen
from keyhole.retention.kept import Kept
from keyhole.retention.layers import Equal, LayerShare, Pyramid
from keyhole.retention.observed import Observed
from keyhole.retention.recency import Recency
from keyhole.retention.tokens import BestOfLayer, BestTokens

__all__ = [
    "Accumulated",
    "BestOfLayer",
    "BestTokens",
    "Equal",
    "Keeping",
    "Kept",
    "LayerShare",
    "NoiseSource",
    "Observed",
    "Picker",
    "Pyramid",
    "Recency",
    "Retention",
    "Schedule",
    "Scorer",
    "Seen",
]
