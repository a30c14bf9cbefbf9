"""A method: one published system as answers to the questions."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, ClassVar

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.feedforward import FeedForward
from keyhole.methods.facts import Facts
from keyhole.prefill import Prefill
from keyhole.retention import Retention
from keyhole.selection import Selector
from keyhole.storage import EVICTIONS, PLACES, PRECISIONS, Storage, make_storage


@dataclass(frozen=True)
class Method:
    """A recipe without tensors: its fields are hyper-parameters, each factory answers one question.

    A factory returns one answer for each served layer, made together since layers may share state. None
    leaves the question to the other stages of a pipeline, and in the end to the plain answer: dense prefill,
    keep everything, store on the device, read everything, activate everything.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    facts: ClassVar[Facts]

    @property
    def needs_positions(self) -> bool:
        """Whether a slot must be the same token in all heads and layers, or its place in the text."""
        return False

    def for_text(self, text: str) -> Method:  # noqa: ARG002
        """The method for one prompt; another than itself where it depends on what is asked."""
        return self

    def prefill(self, info: ModelInfo) -> list[Prefill] | None:  # noqa: ARG002
        """Compute: how attention over the prompt is computed."""
        return None

    def retention(self, info: ModelInfo) -> list[Retention] | None:  # noqa: ARG002
        """Retain: which tokens are kept."""
        return None

    def storage(self, info: ModelInfo) -> list[Storage] | None:  # noqa: ARG002
        """Place: where keys and values live."""
        return None

    def selectors(self, info: ModelInfo) -> list[Selector] | None:  # noqa: ARG002
        """Select: which tokens a query reads."""
        return None

    def feedforward(self, info: ModelInfo) -> FeedForward | None:  # noqa: ARG002
        """Activate: which weights a token of a decode step needs; one answer for the model."""
        return None

    def __str__(self) -> str:
        changed = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        options = ", ".join(_option(name, getattr(self, name)) for name in changed)
        return f"{self.name}({options})" if options else self.name


@dataclass(frozen=True)
class RetrievalMethod(Method):
    """A method that keeps everything and reads little of it.

    Attributes:
        budget: tokens read beside the always-read ones.
        sinks: first tokens of the sequence that are always read.
        window: newest tokens that are always read, the current one included.
        dense_below: contexts shorter than that are read whole; "auto" is the length from which the method
            pays by the cost constants in use, shipped or of `keyhole tune`.
        place: where keys and values live: "device", "host" or "disk".
        keys: how they are stored: "full", "int8" or "int4", values alike.
        cache: bytes of resident blocks in front of host or disk, all layers together; "64MB" is read too. For
            a model on a GPU, place=host with keys=full has single tokens at hand in their place; 0 is room
            for twice as many as a step reads.
        eviction: which resident block goes for another, the one read least often ("lfu") or least recently
            ("lru"); of single tokens it is always the latter.
    """

    # Tokens from which the method pays, where that does not show in the step of one layer alone.
    pays_from: ClassVar[int | None] = None

    budget: Budget = Budget(fraction=0.1)  # noqa: RUF009 - immutable
    sinks: int = 16
    window: int = 64
    dense_below: int | str = "auto"
    place: str = "device"
    keys: str = "full"
    cache: int | str = 0
    eviction: str = "lfu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", Budget.parse(self.budget))
        check_range(self.name, "sinks", self.sinks, 0)
        check_range(self.name, "window", self.window, 1)
        if self.dense_below != "auto":
            check_range(self.name, "dense_below", self.dense_below, 0)
        check_choice(self.name, "place", self.place, PLACES)
        check_choice(self.name, "keys", self.keys, PRECISIONS)
        check_choice(self.name, "eviction", self.eviction, EVICTIONS)
        object.__setattr__(self, "cache", _bytes(self.name, "cache", self.cache))
        if self.cache and self.place == "device":
            raise SpecError(f"{self.name}: cache={self.cache} goes with place=host or place=disk")

    def letters(self, head_dim: int) -> dict[str, float]:  # noqa: ARG002
        """What the formulas of `facts` call by letters of their own, at a head size."""
        return {}

    def storage(self, info: ModelInfo) -> list[Storage] | None:
        if (self.place, self.keys) == ("device", "full"):
            return None
        share = info.share(int(self.cache))
        return [
            make_storage(self.place, self.keys, share, self.eviction, info.device, self.window)
            for _ in info.layers
        ]


def check_range(method: str, option: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise SpecError unless `value` is a whole number in [low, high]."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"{low} to {high}"
        raise SpecError(f"{method}: {option}={value!r} is out of range; give a whole number, {allowed}")


def check_number(method: str, option: str, value: Any, low: float, high: float | None = None) -> None:
    """Raise SpecError unless `value` is a finite number in [low, high]."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not number or value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"{low} to {high}"
        raise SpecError(f"{method}: {option}={value!r} is out of range; give a number, {allowed}")


def check_flag(method: str, option: str, value: Any) -> None:
    """Raise SpecError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise SpecError(f"{method}: {option}={value!r} is neither true nor false")


def check_choice(method: str, option: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise SpecError unless `value` is one of the words allowed."""
    if value not in allowed:
        raise SpecError(f"{method}: {option}={value!r} is not one of {', '.join(allowed)}")


def _bytes(method: str, option: str, value: Any) -> int:
    """Read a number of bytes: 1000000, "64MB", "1.5GiB"."""
    if isinstance(value, str) and (read := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", value.strip())):
        base = 1024 if read[3] else 1000
        return int(float(read[1]) * base ** " KMGT".index(read[2] or " "))
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SpecError(
            f'{method}: {option}={value!r} is no number of bytes; write 1000000, "64MB" or "1GiB"'
        )
    return value


def _option(name: str, value: Any) -> str:
    if isinstance(value, Budget) and value.mass is not None:
        return str(value)
    # Words stand for themselves; other text, such as a path, needs its quotes.
    quoted = isinstance(value, str) and not value.isidentifier()
    return f"{name}={value!r}" if quoted else f"{name}={value}"
