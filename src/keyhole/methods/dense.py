"""The plain answer to every question, the measure of all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.methods.base import Method
from keyhole.methods.facts import Facts


@dataclass(frozen=True)
class Dense(Method):
    """Dense prefill, keep everything, store on the device, read everything."""

    name: ClassVar[str] = "dense"
    paper: ClassVar[str] = "Vaswani et al. 2017"
    summary: ClassVar[str] = "full attention, with the query group folded"
    facts: ClassVar[Facts] = Facts(
        stored="Keys and values, as the model makes them, on its device.",
        select="Nothing is selected: R = N, and all of it is one contiguous read.",
        best_for="Contexts below the break-even length of the other methods, which read everything there "
        "by this call; the measure of accuracy and of speed-ups.",
        weak_at="Time for a step and memory both grow with the context.",
    )
