"""Activate: which weights of its feed-forward and projections a token needs (CHESS).

Source: arXiv 2409.01366. Nothing here knows a model class; `keyhole.engines` finds the modules.
"""

from keyhole.feedforward.fit import Fitted, GatedFit, InputFit, Rule
from keyhole.feedforward.gated import Gated, Projection, cut, is_slow, project, project_sparse, sparse_gated
from keyhole.feedforward.steps import Activated, FeedForward, Steps

__all__ = [
    "Activated",
    "FeedForward",
    "Fitted",
    "Gated",
    "GatedFit",
    "InputFit",
    "Projection",
    "Rule",
    "Steps",
    "cut",
    "is_slow",
    "project",
    "project_sparse",
    "sparse_gated",
]
