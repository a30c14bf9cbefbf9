"""Retain: which tokens are kept at all."""

from keyhole.retention.base import Keeping, Picker, Retention, Scorer, Seen
from keyhole.retention.kept import Kept, of_kept
from keyhole.retention.observed import Observed
from keyhole.retention.recency import Recency
from keyhole.retention.tokens import BestOfLayer, BestTokens

__all__ = [
    "BestOfLayer",
    "BestTokens",
    "Keeping",
    "Kept",
    "Observed",
    "Picker",
    "Recency",
    "Retention",
    "Scorer",
    "Seen",
    "of_kept",
]
