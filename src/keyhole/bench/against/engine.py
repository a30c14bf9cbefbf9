"""What an engine has to do to be measured, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Engine(Protocol):
    """An engine with a model, alone in a process; it holds one sequence at a time."""

    def about(self) -> str:
        """Version and build, as one line."""
        ...

    def start(self, capacity: int) -> None:
        """Forget everything; there will be up to so many tokens."""
        ...

    def read(self, ids: Sequence[int]) -> None:
        """Compute a prompt, until the first token of an answer is known."""
        ...

    def fill(self, tokens: int) -> None:
        """Hold so many synthetic tokens without computing them."""
        ...

    def step(self) -> None:
        """Read the token that came last, and choose the next one greedily."""
        ...

    def logits(self) -> Any:
        """The newest logits, an array `[V]` of float32; None where the engine does not tell them."""
        ...


class Settings(NamedTuple):
    """What all engines are given: the same file and the same threads."""

    file: Path
    threads: int


class Entrant(NamedTuple):
    """An engine that takes part: its name in tables, and how to make it in its process."""

    name: str
    make: Callable[[], Engine]
