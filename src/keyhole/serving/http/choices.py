"""Answers as they come: the choices of a request, collected or streamed."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from keyhole.core.version import __version__
from keyhole.serving.http import usage
from keyhole.serving.http.answer import EventStream, comment, event, json_answer
from keyhole.serving.http.backend import Ticket
from keyhole.serving.http.errors import ApiError, failed
from keyhole.serving.http.service import cancel, merged, unless_gone
from keyhole.serving.http.tools import CallReader
from keyhole.serving.requests import Event, Failed, Finished, Logprob, Piece, Progress, Queued

DONE = "data: [DONE]\n\n"
FINGERPRINT = f"keyhole-{__version__}"
Begun = Coroutine[Any, Any, tuple[Sequence[Ticket], "list[Choice]"]]


@dataclass
class Choice:
    """One answer so far.

    Attributes:
        text: its words, without calls of tools.
        spans: for each of `logprobs`, where in the text its piece begins and ends.
        first: when its first piece came, by `time.perf_counter`.
        opened: whether a stream has shown who speaks.
    """

    index: int
    reader: CallReader
    text: str = ""
    logprobs: list[Logprob] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    finished: Finished | None = None
    first: float | None = None
    opened: bool = False

    def take(self, each: Event) -> str:
        """Take an event; returns the words that it adds.

        Raises:
            ApiError: the answer failed.
        """
        words = ""
        if isinstance(each, Piece):
            self.first = self.first or time.perf_counter()
            self.logprobs += each.logprobs
            span = (len(self.text), len(self.text) + len(each.text))
            self.spans += [span] * len(each.logprobs)
            words = self.reader.put(each.text)
        elif isinstance(each, Finished):
            self.finished = each
            words = self.reader.end()
        elif isinstance(each, Failed):
            raise failed(each)
        self.text += words
        return words

    @property
    def reason(self) -> str | None:
        if self.finished is None:
            return None
        return "tool_calls" if self.reader.calls else self.finished.reason


@dataclass(frozen=True)
class Shape:
    """How an API shows choices.

    Attributes:
        head: what the answer, or each chunk of a stream, begins with.
        piece: from a choice, new words and their log probabilities to items of `choices`, a chunk for each.
        last: the items with which a choice ends in a stream.
        whole: the item of a choice where all is answered at once.
        sized: how many answers each prompt has.
        include_usage: end a stream with a chunk of its own for `usage`.
    """

    head: dict[str, Any]
    piece: Callable[[Choice, str, Sequence[Logprob]], list[dict[str, Any]]]
    last: Callable[[Choice], list[dict[str, Any]]]
    whole: Callable[[Choice], dict[str, Any]]
    sized: int
    include_usage: bool

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        unknown = {"usage": None} if self.include_usage else {}
        return event(self.head | {"choices": choices} | unknown | more)


async def respond(request: HttpRequest, begun: Begun, shape: Shape, *, stream: bool) -> Response:
    """The answers that `begun` gives tickets for, at once or as a stream."""
    if not stream:
        return await unless_gone(request, _whole(request, begun, shape))
    tickets, choices = await begun
    return EventStream(_streamed(request, tickets, choices, shape), partial(cancel, tickets))


async def _whole(request: HttpRequest, begun: Begun, shape: Shape) -> Response:
    tickets, choices = await begun
    await collected(tickets, choices)
    note(request, choices, shape.sized)
    items = [shape.whole(each) for each in choices]
    counts = {"usage": usage_of(choices, shape.sized), "x_keyhole": read_of(choices)}
    return json_answer(shape.head | {"choices": items} | counts)


async def collected(tickets: Sequence[Ticket], choices: Sequence[Choice]) -> None:
    """Wait for all answers.

    Raises:
        ApiError: one failed.
    """
    async with aclosing(merged(tickets)) as events:
        async for found in events:
            if found is not None:
                choices[found[0]].take(found[1])


async def _streamed(
    request: HttpRequest, tickets: Sequence[Ticket], choices: Sequence[Choice], shape: Shape
) -> AsyncGenerator[str, None]:
    """The answers as server-sent events; what there is to wait for is said in comments."""
    try:
        async with aclosing(merged(tickets, request.app.state.service.settings.keep_alive)) as events:
            async for found in events:
                if found is None:
                    yield comment("keep-alive")
                    continue
                for text in _shown(choices, *found, shape):
                    yield text
    except ApiError as error:
        yield event(error.body())
        return
    if shape.include_usage:
        yield shape.chunk([], usage=usage_of(choices, shape.sized), x_keyhole=read_of(choices))
    yield DONE
    note(request, choices, shape.sized)


def _shown(choices: Sequence[Choice], number: int, each: Event, shape: Shape) -> list[str]:
    said = waiting(each)
    if said is not None:
        return [said]
    choice = choices[number]
    words = choice.take(each)
    logprobs = each.logprobs if isinstance(each, Piece) else ()
    items = shape.piece(choice, words, logprobs) if words or logprobs else []
    chunks = [shape.chunk([item]) for item in items]
    if choice.finished is not None:
        ends = all(one.finished for one in choices) and not shape.include_usage
        *before, last = shape.last(choice)
        chunks += [shape.chunk([item]) for item in before]
        chunks.append(shape.chunk([last], **({"x_keyhole": read_of(choices)} if ends else {})))
    return chunks


def waiting(each: Event) -> str | None:
    """A comment on what a client waits for; None for other events."""
    if isinstance(each, Queued):
        return comment(f"queued {each.place}")
    if isinstance(each, Progress):
        return comment(f"reading {each.done} of {each.total}")
    return None


def usage_of(choices: Sequence[Choice], sized: int) -> dict[str, Any]:
    """`usage` of finished choices, of which each prompt has `sized`."""
    return usage.completion_usage(_by_prompt(choices, sized))


def read_of(choices: Sequence[Choice]) -> dict[str, Any]:
    """`x_keyhole` of finished choices."""
    return usage.read_of([each.finished for each in choices if each.finished is not None])


def note(request: HttpRequest, choices: Sequence[Choice], sized: int) -> None:
    """Leave for the log what the answers took."""
    state = request.scope["state"]
    state["counted"] = usage.counted(_by_prompt(choices, sized))
    state["first"] = min((each.first for each in choices if each.first is not None), default=None)


def _by_prompt(choices: Sequence[Choice], sized: int) -> list[list[Any]]:
    usages = [each.finished.usage for each in choices if each.finished is not None]
    return [usages[at : at + sized] for at in range(0, len(usages), sized)]
