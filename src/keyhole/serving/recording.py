"""How a record of what was read is kept while an answer is decoded."""

from __future__ import annotations

from typing import Any, Protocol

from transformers import PreTrainedModel

from keyhole.engines.transformers import KeyholeCache


class Recorder(Protocol):
    """The record of one answer. It is called by the thread that owns the model."""

    def begin(self, model: PreTrainedModel, cache: KeyholeCache, prompt: tuple[int, ...]) -> None:
        """The prompt is read, and decoding begins."""
        ...

    def step(self, token: int) -> None:
        """A step gave this token."""
        ...

    def end(self) -> Any:
        """Nothing follows; returns the record.

        Raises:
            ValueError: it would be larger than records may be.
        """
        ...

    def drop(self) -> None:
        """The request ended before its time: nothing follows, and no record is made."""
        ...
