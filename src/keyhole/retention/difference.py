"""Keys unlike the others are kept.

Source: Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
Resource-Constrained Environments", arXiv 2504.15364.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from keyhole.retention.base import Scorer, ScorerInput
from keyhole.retention.kept import Kept
from keyhole.storage import Storage


class KeyDifference(Scorer):
    """The negative cosine of a token's key and the mean direction of all kept keys of its head."""

    looks_back = 0

    def see(self, seen: ScorerInput) -> None:
        """Nothing is noted."""

    def scores(self, storage: Storage, kept: Kept) -> Tensor:
        keys = _directions(storage.keys().float())
        padding = torch.tensor(kept.padding, device=keys.device).view(-1, 1, 1)
        anchor = keys.masked_fill((kept.positions < padding).unsqueeze(-1), 0.0).sum(2, keepdim=True)
        return -(keys * _directions(anchor)).sum(-1)


def _directions(keys: Tensor) -> Tensor:
    """Vectors of length 1, those without a direction zero."""
    largest = keys.abs().amax(-1, keepdim=True)
    return normalize(keys / largest.where(largest > 0, 1.0), dim=-1)
