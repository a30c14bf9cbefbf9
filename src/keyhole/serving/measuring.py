"""What an answer took, and why there is none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch

from keyhole.core.errors import StoreError
from keyhole.engines.transformers import KeyholeCache, served_layers
from keyhole.serving.requests import Failed, ServedUsage


@dataclass(frozen=True)
class State:
    """What goes on; counts never decrease.

    Attributes:
        alive: whether requests are answered.
        waiting: requests in the queue; at most `queue`, and those that are about to get a slot.
        running: requests that are read or answered, at most `slots`; `reading` of them are read.
        held_bytes: what running requests hold at most; `memory` is the limit.
        finished: requests that ended, by "stop", "length", "added" or the kind of their failure.
        refused: requests that were turned away because too many waited.
        tokens: by "prompt" (computed), "cached", "written" and "completion".
        chunk_seconds: mean seconds of computing 256 prompt tokens; 0.0 before any.
    """

    alive: bool
    waiting: int
    running: int
    reading: int
    held_bytes: int
    memory: int
    slots: int
    queue: int
    finished: dict[str, int]
    refused: int
    tokens: dict[str, int]
    chunk_seconds: float


class Counts:
    """Tokens and pieces of work so far; counted and read in any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._tokens: Counter[str] = Counter(prompt=0, cached=0, written=0, completion=0)
        self._chunks, self._seconds = 0, 0.0

    def add(self, kind: str, tokens: int) -> None:
        with self._lock:
            self._tokens[kind] += tokens

    def add_chunk(self, seconds: float) -> None:
        """A call computed as many prompt tokens as one may."""
        with self._lock:
            self._chunks, self._seconds = self._chunks + 1, self._seconds + seconds

    @property
    def tokens(self) -> dict[str, int]:
        """By kind: "prompt" (computed), "cached", "written", "completion"."""
        with self._lock:
            return dict(self._tokens)

    @property
    def chunk_seconds(self) -> float:
        """Mean of the calls of `add_chunk`; 0.0 before the first."""
        with self._lock:
            return self._seconds / self._chunks if self._chunks else 0.0


def usage_of(cache: KeyholeCache, *, prompt: int, cached: int, completion: int) -> ServedUsage:
    """What an answer with this cache took, without what was written to the store."""
    total, layers = cache.usage, max(len(served_layers(cache)), 1)
    return ServedUsage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        cache_write_tokens=0,
        completion_tokens=completion,
        method=cache.method,
        tokens_read=total.read / layers,
        tokens_in_context=total.tokens / layers,
        share=total.read / total.tokens if total.tokens else 1.0,
        bytes_read=total.bytes,
        bytes_held=cache.footprint._asdict(),
        missed_mass=_missed(cache),
    )


def _missed(cache: KeyholeCache) -> float | None:
    """The mean of the mass that was not read; None where tokens were dropped, of which nobody knows."""
    total = cache.usage
    if cache.recipe.drops:
        return None
    return max(0.0, 1.0 - total.mass / total.steps) if total.steps else 0.0


def without_place(said: str, store: Path | None) -> str:
    """A message that does not say where the store is, which is not for clients to know."""
    return said if store is None else said.replace(str(store), "the store")


def failed_by(error: Exception, store: Path | None = None) -> Failed:
    """The last event of a request that ended by this error, `without_place` of its store."""
    said = without_place(" ".join(str(error).split()) or type(error).__name__, store)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in said:
        return Failed(f"the server ran out of memory: {said}", "memory")
    return Failed(said, "document" if isinstance(error, StoreError) else "model")
