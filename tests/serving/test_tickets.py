"""Events of a ticket, by asyncio and by threads."""

import asyncio
import threading

import pytest

from keyhole.serving.requests import Failed, Finished, Logprob, Piece, Queued, Started
from keyhole.serving.tickets import RequestFailedError, Ticket
from tests.serving.fakes import USAGE

END = Finished("stop", USAGE)


def test_events_come_in_their_order_from_another_thread():
    ticket, events = Ticket(), [Queued(1), Started(0), *(Piece(str(n), (n,)) for n in range(200)), END]

    async def take():
        threading.Thread(target=lambda: [ticket.put(event) for event in events]).start()
        return [event async for event in ticket.events()]

    assert asyncio.run(take()) == events
    assert not ticket.cancelled


def test_events_that_were_there_before_are_given_first():
    ticket = Ticket()
    ticket.put(Queued(1))
    ticket.put(END)

    async def take():
        return [event async for event in ticket.events()]

    assert asyncio.run(take()) == [Queued(1), END]


def test_nothing_follows_the_last_event():
    ticket = Ticket()
    for event in (END, Piece("late", (1,)), Failed("late", "model")):
        ticket.put(event)
    assert list(ticket) == [END]


@pytest.mark.parametrize("how", ["break", "cancel"])
def test_who_leaves_early_cancels(how):
    woken = []
    ticket = Ticket(lambda: woken.append(True))
    ticket.put(Queued(1))

    async def take():
        events = ticket.events()
        async for _ in events:
            if how == "break":
                break
        await events.aclose()

    async def leave():
        task = asyncio.create_task(take())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(take() if how == "break" else leave())
    assert ticket.cancelled
    assert woken


def test_an_answer_is_put_together():
    ticket = Ticket()
    for event in (Queued(1), Piece("a", (1,), (Logprob(1, -0.5),)), Piece("", (2, 3)), END):
        ticket.put(event)
    served = ticket.result(1)
    assert (served.text, served.tokens, served.finished) == ("a", (1, 2, 3), END)
    assert served.logprobs == (Logprob(1, -0.5),)


def test_a_failure_is_raised():
    ticket = Ticket()
    ticket.put(Failed("broken", "model"))
    with pytest.raises(RequestFailedError, match="broken") as raised:
        ticket.result()
    assert raised.value.failed.kind == "model"


def test_an_answer_that_does_not_come_in_time_is_not_waited_for():
    with pytest.raises(TimeoutError):
        Ticket().result(0.01)


def test_a_loop_that_is_closed_disturbs_nobody():
    ticket = Ticket()

    async def take():
        events = ticket.events()
        task = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        return events, task

    loop = asyncio.new_event_loop()
    held = loop.run_until_complete(take())
    loop.close()
    ticket.put(END)
    assert ticket.over
    del held
