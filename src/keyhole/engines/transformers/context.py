"""Which attachments are open in a thread or a task.

A task, and whatever runs in a copy of a context, has those of where it was started; a new thread has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import ref

from transformers import Cache, PreTrainedModel


class Serving(Protocol):
    """What an attachment is to the calls of its model."""

    closed: bool

    def serves(self, model: object) -> bool:
        """Whether it is of that model."""
        ...

    def receive(self, model: PreTrainedModel, cache: Cache | None, tokens: int) -> Cache | None:
        """The cache that a call of so many tokens is to use, which was given this one."""
        ...

    def finish(self, served: bool) -> None:
        """A call that asked for a cache is over."""
        ...

    def pass_by(self, module: Any) -> None:
        """An attention module was given keys of a cache that is not Keyhole's."""
        ...

    def miss(self) -> None:
        """A call of another thread or task went past it."""
        ...


# Weak references: a context may outlive the block, and what its requests hold is large.
_open: ContextVar[tuple[ref[Serving], ...]] = ContextVar("keyhole_attachments", default=())


def opened() -> Iterator[Serving]:
    """The open attachments of this thread or task, the innermost first."""
    for reference in reversed(_open.get()):
        attachment = reference()
        if attachment is not None and not attachment.closed:
            yield attachment


def current(model: object) -> Serving | None:
    """The attachment that serves the model's calls in this thread or task."""
    return next((attachment for attachment in opened() if attachment.serves(model)), None)


def enter(attachment: Serving) -> None:
    """Open an attachment, here and in what is started from here."""
    _open.set((*(ref(each) for each in reversed(list(opened()))), ref(attachment)))


def leave(attachment: Serving) -> None:
    """Close it, everywhere: blocks need not end in the order, or in the context, in which they began."""
    attachment.closed = True
    _open.set(tuple(ref(each) for each in reversed(list(opened()))))
