"""A method: one published system as answers to the four questions."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from keyhole.budget import Budget
from keyhole.errors import SpecError
from keyhole.prefill import Prefill
from keyhole.retention import Retention
from keyhole.selection import Selector
from keyhole.setting import Setting
from keyhole.storage import Storage


@dataclass(frozen=True)
class Method:
    """A recipe without tensors: its fields are hyper-parameters, each factory answers one question.

    A factory returns one answer for each served layer, made together since layers may share state. None
    leaves the question to the other stages of a pipeline, and in the end to the plain answer: dense prefill,
    keep everything, store on the device, read everything.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]

    def prefill(self, setting: Setting) -> list[Prefill] | None:  # noqa: ARG002
        """Compute: how attention over the prompt is computed."""
        return None

    def retention(self, setting: Setting) -> list[Retention] | None:  # noqa: ARG002
        """Retain: which tokens are kept."""
        return None

    def storage(self, setting: Setting) -> list[Storage] | None:  # noqa: ARG002
        """Place: where keys and values live."""
        return None

    def selectors(self, setting: Setting) -> list[Selector] | None:  # noqa: ARG002
        """Select: which tokens a query reads."""
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
            pays on this machine, measured once (`keyhole.calibration`).
    """

    budget: Budget = Budget(fraction=0.1)  # noqa: RUF009 - immutable
    sinks: int = 16
    window: int = 64
    dense_below: int | str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", Budget.parse(self.budget))
        check_range(self.name, "sinks", self.sinks, 0)
        check_range(self.name, "window", self.window, 1)
        if self.dense_below != "auto":
            check_range(self.name, "dense_below", self.dense_below, 0)


def check_range(method: str, option: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise SpecError unless `value` is a whole number in [low, high]."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"{low} to {high}"
        raise SpecError(f"{method}: {option}={value!r} is out of range; give a whole number, {allowed}")


def _option(name: str, value: Any) -> str:
    if isinstance(value, Budget) and value.mass is not None:
        return str(value)
    return f"{name}={value}"
