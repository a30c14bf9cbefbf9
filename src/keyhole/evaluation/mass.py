"""The exact share of attention mass that was read, measured beside decoding.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, N cached tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keyhole.layer import LayerCache, Observation

_CHUNK = 16_384  # keys scored at a time, to bound the float32 copy
_ROUNDING = 1e-5


@dataclass
class MassTally:
    """Sums over cases: one layer, KV head and step each. A layer that read everything has mass 1.

    Attributes:
        target: the share a case must reach to count as `reached`.
        cases: layers times steps; `mass` and `reached` sum the means over the KV heads of each.
    """

    target: float | None = None
    cases: int = 0
    mass: float = 0.0
    reached: float = 0.0

    def add(self, share: Tensor) -> None:
        """Count a layer's step that read these shares, `[B, Hkv]`."""
        self.cases += 1
        self.mass += float(share.mean())
        if self.target is not None:
            self.reached += float((share >= self.target - _ROUNDING).float().mean())

    def add_whole(self, cases: int) -> None:
        """Count cases that read everything."""
        self.cases += cases
        self.mass += cases
        self.reached += cases


class MassMeter:
    """Watches the layers of one request. Measuring is left to `settle`, to keep it out of a timing."""

    def __init__(self, layers: Sequence[LayerCache], target: float | None = None) -> None:
        self.tally = MassTally(target)
        self._layers = layers
        self._pending: list[Observation] = []
        for layer in layers:
            layer.observer = self._pending.append

    def settle(self) -> None:
        """Measure the step that was just taken."""
        self.tally.add_whole(len(self._layers) - len(self._pending))
        for observation in self._pending:
            self.tally.add(exact_mass(observation))
        self._pending.clear()


def exact_mass(seen: Observation) -> Tensor:
    """The share of the exact softmax read, a mean over a group's query heads, float32 `[B, Hkv]`."""
    read, every, sinks = seen.read.part.lse, _lse_of_all(seen), seen.logits.sink_logits
    if sinks is not None:  # what they take is accounted for, as in what was estimated
        read, every = (torch.logaddexp(lse, sinks.float()) for lse in (read, every))
    return (read - every).exp().unflatten(1, (seen.read.selection.counts.shape[1], -1)).mean(-1)


def _lse_of_all(seen: Observation) -> Tensor:
    """Log-sum-exp of the logits of every token, `[B, H]`."""
    every_key = seen.storage.keys()
    query = seen.query.unflatten(1, (every_key.shape[1], -1)).float() * seen.logits.scale  # [B, Hkv, G, D]
    padding = torch.tensor(seen.read.regions.padding, device=query.device).view(-1, 1, 1, 1)
    total = query.new_full(query.shape[:3], -torch.inf)
    for start in range(0, every_key.shape[2], _CHUNK):
        keys = every_key[:, :, start : start + _CHUNK].float()
        logits = query @ keys.transpose(-1, -2)
        if seen.logits.softcap is not None:
            logits = seen.logits.softcap * (logits / seen.logits.softcap).tanh()
        slots = torch.arange(start, start + keys.shape[2], device=query.device)
        total = torch.logaddexp(total, logits.masked_fill(slots < padding, -torch.inf).logsumexp(-1))
    return total.flatten(1)
