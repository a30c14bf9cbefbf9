"""Retain: which tokens are kept at all."""

from keyhole.retention.accumulated import Accumulated, NoiseSource, Schedule
from keyhole.retention.base import Allocator, Retention, Scorer, ScorerInput
from keyhole.retention.compaction import CompactingScorer
from keyhole.retention.critical import CriticalScorer
from keyhole.retention.difference import KeyDifference
from keyhole.retention.expected import ExpectedAttention
from keyhole.retention.kept import Kept
from keyhole.retention.latest import LatestAttention
from keyhole.retention.layers import Equal, GroupPyramid, LayerShare, Pyramid, group_pyramid
from keyhole.retention.newest import NewestShare
from keyhole.retention.norm import KeyNorm
from keyhole.retention.observed import Observed
from keyhole.retention.policy import EvictionPolicy
from keyhole.retention.recency import Recency
from keyhole.retention.shared import share
from keyhole.retention.tokens import BestOfLayer, BestTokens
from keyhole.retention.windows import WindowScores
from keyhole.retention.wrapped import WrappedScorer

__all__ = [
    "Accumulated",
    "Allocator",
    "BestOfLayer",
    "BestTokens",
    "CompactingScorer",
    "CriticalScorer",
    "Equal",
    "EvictionPolicy",
    "ExpectedAttention",
    "GroupPyramid",
    "Kept",
    "KeyDifference",
    "KeyNorm",
    "LatestAttention",
    "LayerShare",
    "NewestShare",
    "NoiseSource",
    "Observed",
    "Pyramid",
    "Recency",
    "Retention",
    "Schedule",
    "Scorer",
    "ScorerInput",
    "WindowScores",
    "WrappedScorer",
    "group_pyramid",
    "share",
]
