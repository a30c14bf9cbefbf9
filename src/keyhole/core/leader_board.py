"""Where a layer that leads others leaves what they go by."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

_Note = TypeVar("_Note")


class LeaderBoard(Generic[_Note]):
    """Notes of one leader, each with the moment it is of; layers that follow ask for that of their moment.

    Args:
        notes: how many of the newest moments are held.
    """

    def __init__(self, notes: int = 1) -> None:
        self._notes: deque[tuple[Hashable, _Note]] = deque(maxlen=notes)

    def hold(self, notes: int) -> None:
        """Hold the notes of so many of the newest moments from here on."""
        self._notes = deque(self._notes, maxlen=notes)

    def pin(self, moment: Hashable, note: _Note) -> None:
        """Hold a note of this moment."""
        self._notes.append((moment, note))

    def read(self, moment: Hashable) -> _Note:
        """The newest note of this moment.

        Raises:
            ValueError: the leader has not left one.
        """
        for noted, note in reversed(self._notes):
            if noted == moment:
                return note
        raise ValueError(
            f"the leading layer has published nothing at {moment}: a layer runs without its leader; run "
            "all layers of the model in every step"
        )

    def clear(self) -> None:
        """Notes are of no use to another step, even to one of the same moment."""
        self._notes.clear()
