"""The plain answer to every question, the measure of all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.methods.base import Method


@dataclass(frozen=True)
class Dense(Method):
    """Dense prefill, keep everything, store on the device, read everything."""

    name: ClassVar[str] = "dense"
    paper: ClassVar[str] = "Vaswani et al. 2017"
    summary: ClassVar[str] = "full attention, with the query group folded"
