"""Dense attention: the baseline."""

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
        stored="Keys and values in the model's dtype, on its device.",
        select="No selection: R = N, in one contiguous read.",
        best_for="Contexts below the break-even length of the other methods, which use the same call there; "
        "the baseline for accuracy and speed.",
        weak_at="Step time and memory grow with the context.",
    )
