"""What all routes share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import cached_property
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from keyhole.engines.transformers.sizes import position_range
from keyhole.methods import Recipe
from keyhole.methods.beyond import renumbers
from keyhole.serving.http.backend import Scheduler, Ticket
from keyhole.serving.http.errors import ApiError, refused
from keyhole.serving.http.fields import Fields
from keyhole.serving.http.prompter import Prompter
from keyhole.serving.http.settings import Settings
from keyhole.serving.measuring import without_place
from keyhole.serving.requests import LAST, Event, Failed, OverloadedError

T = TypeVar("T")
_PARSERS = 2  # files whose text is found at once
log = logging.getLogger("keyhole.serving")


class Service:
    """A scheduler, how it is shown, and how prompts are made for it."""

    def __init__(self, scheduler: Scheduler, settings: Settings) -> None:
        self.scheduler, self.settings = scheduler, settings
        self.prompter = Prompter(scheduler.loaded.tokenizer)
        self.began = int(time.time())
        self.parsers = asyncio.Semaphore(_PARSERS)

    def check_model(self, fields: Fields) -> None:
        """Raise ApiError (404) unless the model that is asked for is the one that is served."""
        name = fields.required("model")
        if name != self.settings.model:
            shown = repr(name[:100]) if isinstance(name, str) else "that is no string"
            raise ApiError(
                f"there is no model {shown}; this server has {self.settings.model!r}",
                status=404,
                param=fields.name("model"),
                code="model_not_found",
            )

    @cached_property
    def context(self) -> int | None:
        """Tokens of a prompt and its answer, where that is known."""
        most = self.scheduler.max_context
        return position_range(self.scheduler.loaded.model) if most is None else most

    def most(self, recipe: Recipe | None) -> int | None:
        """Tokens that a prompt can have by a recipe, else by the server's; None where nothing bounds them."""
        beyond = renumbers(recipe or self.scheduler.recipe)
        return self.scheduler.max_context if beyond else self.context

    def room(self, prompt: int) -> int | None:
        """Tokens that an answer to a prompt can have; None behind one that only some methods can read."""
        most = self.context
        return None if most is None or prompt >= most else most - prompt

    def refused(self, error: Exception, param: str | None) -> ApiError:
        """As `errors.refused`, `without_place` of the store."""
        found, library = refused(error, param), self.scheduler.library
        found.message = without_place(found.message, None if library is None else library.store.path)
        return found


def service_of(request: HttpRequest) -> Service:
    return request.app.state.service


async def submitted(
    service: Service, submits: Sequence[Callable[[], Ticket]], param: str | None = None
) -> list[Ticket]:
    """Tickets of several requests, all of them or none.

    Raises:
        ApiError: one was refused, or they are more than there may ever be at once.
    """
    state = service.scheduler.state()
    if len(submits) > state.slots + state.queue:
        raise ApiError(
            f"{len(submits)} answers at once are more than this server takes, which runs {state.slots} and "
            f"lets {state.queue} wait; ask for fewer",
            param="n",
            code="invalid_value",
        )
    work = asyncio.ensure_future(asyncio.to_thread(_submit, submits))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(_forget)
        raise
    except (OverloadedError, ValueError, OSError) as error:
        raise service.refused(error, param) from error


def _submit(submits: Sequence[Callable[[], Ticket]]) -> list[Ticket]:
    tickets: list[Ticket] = []
    try:
        for submit in submits:
            tickets.append(submit())  # noqa: PERF401 - those before a refusal are kept to be cancelled
    except BaseException:
        cancel(tickets)
        raise
    return tickets


def _forget(work: asyncio.Future[list[Ticket]]) -> None:
    """Cancel the tickets of a client that went away while they were made."""
    if not work.cancelled() and work.exception() is None:
        cancel(work.result())


def cancel(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.cancel()


async def merged(
    tickets: Sequence[Ticket], quiet: float | None = None
) -> AsyncGenerator[tuple[int, Event] | None, None]:
    """The events of several tickets as they come, with the ticket's number; None after `quiet` seconds.

    The tickets are cancelled if it is closed early.
    """
    arrived: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    pumps = [asyncio.ensure_future(_pump(number, ticket, arrived)) for number, ticket in enumerate(tickets)]
    running = len(tickets)
    try:
        while running:
            try:
                found = await asyncio.wait_for(arrived.get(), quiet)
            except TimeoutError:
                yield None
                continue
            running -= isinstance(found[1], LAST)
            yield found
    finally:
        cancel(tickets)
        for each in pumps:
            each.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(number: int, ticket: Ticket, arrived: asyncio.Queue[tuple[int, Event]]) -> None:
    """Pass on the events of one ticket, the last of which is of LAST in any case."""
    try:
        async with aclosing(ticket.events()) as events:
            async for each in events:
                arrived.put_nowait((number, each))
                if isinstance(each, LAST):
                    return
    except Exception as error:
        log.error("the events of a request broke off: %s", type(error).__name__)
    arrived.put_nowait((number, Failed("the request broke off", "model")))


async def unless_gone(request: HttpRequest, work: Any) -> Any:
    """What a coroutine returns; it is cancelled when the client goes away.

    Raises:
        ClientDisconnect: the client went away.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for each in (working, leaving):
            each.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: HttpRequest) -> None:
    """Returns when the client has gone; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def in_store(service: Service, work: Callable[[], T], param: str | None = None) -> T:
    """Run what uses the store, in a thread.

    Raises:
        ApiError: the store refuses it.
    """
    try:
        return await asyncio.to_thread(work)
    except (ValueError, OSError) as error:
        raise service.refused(error, param) from error
