"""The thread that owns the model: order, room, failures, cancelling, ending."""

import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhole.serving.requests import Failed, Finished, OverloadedError, Piece, Queued
from keyhole.serving.tickets import Ticket
from keyhole.serving.worker import Worker
from tests.serving.fakes import CHUNK, Fake, ended


@pytest.fixture
def start():
    workers = []

    def started(**changes):
        workers.append(Worker(**({"slots": 2, "memory": 100, "queue": 50, "chunk": CHUNK} | changes)))
        return workers[-1]

    yield started
    for worker in workers:
        worker.close(drain=False, patience=0)


def until(true):
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_jobs_begin_in_the_order_of_their_arrival(start):
    gate, log = threading.Event(), []
    worker = start(slots=1)
    jobs = [Fake(log=log, gate=gate, name=name) for name in range(5)]
    for job in jobs:
        worker.submit(job)
    gate.set()
    for job in jobs:
        assert isinstance(ended(job.ticket), Finished)
    assert list(dict.fromkeys(name for name, _ in log)) == list(range(5))


def test_the_place_in_the_queue_is_reported_as_it_changes(start):
    gate = threading.Event()
    worker = start(slots=1)
    first, *others = [Fake(gate=gate) for _ in range(4)]
    worker.submit(first)
    until(lambda: len(worker.running) == 1)
    for job in others:
        worker.submit(job)
    gate.set()
    assert isinstance(ended(first.ticket), Finished)
    last = list(others[-1].ticket)
    assert [event.place for event in last if isinstance(event, Queued)] == [3, 2, 1]


def test_no_more_run_at_once_than_there_are_slots_and_memory_for(start):
    gate = threading.Event()
    worker = start(slots=3, memory=10)
    jobs = [Fake(gate=gate, needs=needs) for needs in (4, 4, 4, 1)]
    for job in jobs:
        worker.submit(job)
    until(lambda: len(worker.running) == 2)
    assert worker.held == 8
    assert len(worker.waiting) == 2  # the last one would fit, and does not overtake
    gate.set()
    assert all(isinstance(ended(job.ticket), Finished) for job in jobs)
    assert worker.held == 0


def test_a_full_queue_refuses_and_says_when_to_try_again(start):
    gate = threading.Event()
    worker = start(slots=1, queue=2)
    worker.submit(Fake(gate=gate))
    until(lambda: len(worker.running) == 1)
    jobs = [Fake(gate=gate), Fake(gate=gate)]
    for job in jobs:
        worker.submit(job)
    with pytest.raises(OverloadedError) as refused:
        worker.submit(Fake())
    assert refused.value.retry_after >= 1
    assert worker.pace.refused == 1
    gate.set()
    assert all(isinstance(ended(job.ticket), Finished) for job in jobs)
    worker.submit(again := Fake())
    assert isinstance(ended(again.ticket), Finished)


def test_a_queue_of_none_takes_what_gets_a_slot(start):
    gate = threading.Event()
    worker = start(slots=2, queue=0)
    jobs = [Fake(gate=gate), Fake(gate=gate)]
    for job in jobs:
        worker.submit(job)
    with pytest.raises(OverloadedError):
        worker.submit(Fake())
    gate.set()
    assert all(isinstance(ended(job.ticket), Finished) for job in jobs)


def test_a_job_that_fails_ends_alone(start):
    worker = start(slots=3)
    jobs = [Fake(25, 3), Fake(25, 3, raises=RuntimeError("broken")), Fake(25, 3)]
    for job in jobs:
        worker.submit(job)
    good, bad, also = (ended(job.ticket) for job in jobs)
    assert isinstance(good, Finished)
    assert isinstance(also, Finished)
    assert bad == Failed("broken", "model")
    until(lambda: all(job.closed for job in jobs))
    assert worker.pace.ended == {"done": 2, "model": 1}


def test_a_last_event_that_fails_fails_its_job_alone(start, monkeypatch):
    worker = start()
    job, other = Fake(), Fake()
    monkeypatch.setattr(job, "finish", lambda: 1 / 0)
    worker.submit(job)
    worker.submit(other)
    assert ended(job.ticket) == Failed("division by zero", "model")
    assert isinstance(ended(other.ticket), Finished)


def test_a_cancelled_job_is_freed_within_a_step(start):
    worker = start(slots=1)
    job = Fake(1, 1_000_000, ticket=Ticket(worker.wake))
    waiting = Fake(ticket=Ticket(worker.wake))
    worker.submit(job)
    worker.submit(waiting)
    until(lambda: len(job.log) > 3)
    waiting.ticket.cancel()
    assert ended(waiting.ticket).kind == "stopped"
    job.ticket.cancel()
    after = len(job.log)
    assert ended(job.ticket).kind == "stopped"
    assert len(job.log) <= after + 2
    until(lambda: job.closed and not len(worker.running))
    assert not waiting.log


def test_draining_ends_what_was_submitted_and_takes_no_more(start):
    gate = threading.Event()
    worker = start(slots=1)
    jobs = [Fake(gate=gate) for _ in range(4)]
    for job in jobs:
        worker.submit(job)
    closing = threading.Thread(target=lambda: worker.close(drain=True, patience=20))
    closing.start()
    until(lambda: worker._closing)
    with pytest.raises(OverloadedError, match="stopping"):
        worker.submit(Fake())
    gate.set()
    assert all(isinstance(ended(job.ticket), Finished) for job in jobs)
    closing.join(10)
    assert not worker.alive


def test_what_is_left_when_patience_ends_fails(start):
    worker = start(slots=1)
    endless, waiting = Fake(1, 10**9), Fake()
    worker.submit(endless)
    worker.submit(waiting)
    assert worker.close(drain=True, patience=0.05) is False
    assert ended(endless.ticket).kind == ended(waiting.ticket).kind == "closed"
    assert endless.closed
    assert waiting.closed
    assert worker.close(drain=True, patience=0.05) is False


def test_the_death_of_the_thread_fails_everything_and_is_noticed(start):
    worker = start(slots=2)
    jobs = [Fake(1, 10**9), Fake(1, 1, raises=SystemExit("gone")), Fake()]
    for job in jobs:
        worker.submit(job)
    for job in jobs[:2]:
        assert ended(job.ticket) == Failed("the server's worker ended: gone", "model")
    until(lambda: not worker.alive)
    with pytest.raises(OverloadedError, match="gone"):
        worker.submit(Fake())


@given(st.integers(0, 2**32 - 1))
def test_every_ticket_has_one_last_event_whatever_happens(seed):
    draw = random.Random(seed)
    worker = Worker(slots=draw.randint(1, 4), memory=10, queue=draw.randint(0, 20), chunk=CHUNK)
    jobs, refused = [], 0
    for _ in range(30):
        raises = RuntimeError("broken") if draw.random() < 0.2 else None
        job = Fake(draw.randint(1, 40), draw.randint(1, 5), needs=draw.randint(1, 10), raises=raises)
        job.ticket._wake = worker.wake
        try:
            worker.submit(job)
        except OverloadedError:
            refused += 1
            continue
        jobs.append(job)
        if draw.random() < 0.3:
            draw.choice(jobs).ticket.cancel()
    worker.close(drain=draw.random() < 0.8, patience=20)
    for job in jobs:
        events = list(job.ticket)
        last = [event for event in events if isinstance(event, (Finished, Failed))]
        assert last == events[-1:]
        assert job.closed == 1
        if isinstance(last[0], Finished):
            assert sum(isinstance(event, Piece) for event in events) == job.steps
    assert sum(worker.pace.ended.values()) == len(jobs)
    assert worker.pace.refused == refused
    assert not len(worker.running)
    assert not worker.waiting
