"""Wrong requests over raw sockets: JSON, types, sizes, encodings, and connections that are slow or break.

    python -m tests.serving.http.fuzz --requests 10000 --seed 0

None may be answered by 500, leave a traceback in the log, or anything behind: requests, threads,
descriptors. The scheduler is a fake one, so that every request reaches the HTTP code alone; `--url`
takes a running server instead, of which only the answers are looked at.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from keyhole.serving.http import protocol
from tests.serving.http.clients import SETTINGS, running
from tests.serving.http.fakes import FakeLibrary, FakeScheduler
from tests.serving.http.wrong import Wrong, sent_of

_PATIENCE = 20.0  # seconds for an answer
_ALLOWED = {501, 503}  # of the statuses from 500 on
_WORKERS = 4


class Failures(list):
    """What must not happen, with the request that made it happen."""

    def add(self, what: str, wrong: Wrong) -> None:
        self.append(f"{what}: {wrong.behaviour} {wrong.data[:300]!r}")


def answer_to(address: tuple[str, int], wrong: Wrong) -> bytes | None:
    """What a server answers, all of it; None where the client did not wait for it."""
    with socket.create_connection(address, timeout=_PATIENCE) as connection, suppress(ConnectionError):
        sent_of(connection, wrong)
        if wrong.behaviour in ("leave", "reset"):
            return None
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
        return b"".join(parts)
    return None


def check(answer: bytes | None, wrong: Wrong, failures: Failures) -> str:
    """The status of an answer, after a look at its form."""
    answer = (answer or b"").removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    if not answer:
        return "none"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1].decode(errors="replace") if head.startswith(b"HTTP/1.1 ") else "no HTTP"
    if not status.isdigit() or (int(status) >= 500 and int(status) not in _ALLOWED):
        failures.add(f"status {status} {body[:200]!r}", wrong)
    elif int(status) >= 400 and not wrong.data.startswith(b"HEAD") and b'"error":{"message":"' not in body:
        failures.add(f"status {status} without an error object {body[:200]!r}", wrong)
    if b"Traceback" in answer:
        failures.add("a traceback in the answer", wrong)
    return status


def attack(address: tuple[str, int], count: int, seed: int) -> tuple[Counter[str], Failures]:
    """Send `count` wrong requests by a few threads; returns how often which status came."""
    statuses: Counter[str] = Counter()
    failures, lock = Failures(), threading.Lock()

    def work(number: int) -> None:
        source = random.Random(f"{seed} {number}")
        for _ in range(number, count, _WORKERS):
            wrong = Wrong.draw(source)
            try:
                status = check(answer_to(address, wrong), wrong, failures)
            except TimeoutError:
                failures.add("no answer", wrong)
                status = "timeout"
            with lock:
                statuses[status] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(_WORKERS)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    return statuses, failures


@contextmanager
def tracebacks():
    """Lines of the log, of asyncio too, in which an exception is shown."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record):
            if record.exc_info or "Traceback" in record.getMessage() or record.name == "asyncio":
                found.append(f"{record.name}: {self.format(record)}")

    listener = Listener()
    names = ("", "keyhole.serving", "uvicorn.error", "asyncio")
    for name in names:
        logging.getLogger(name).addHandler(listener)
    try:
        yield found
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(listener)


def attack_own(count: int, seed: int) -> tuple[Counter[str], Failures]:
    """Attack a server of this process, and look at what is left behind."""
    scheduler = FakeScheduler(library=FakeLibrary())
    before = descriptors(), threading.active_count()
    protocol.GAP_SECONDS = 1.0
    with tracebacks() as found:
        with running(scheduler, SETTINGS) as server:
            statuses, failures = attack(("127.0.0.1", server.port), count, seed)
            ends = time.monotonic() + _PATIENCE
            while (scheduler.open or server.server.server_state.connections) and time.monotonic() < ends:
                time.sleep(0.05)
            if scheduler.open or server.server.server_state.connections:
                failures.append(f"left open: {scheduler.open} requests")
        failures += found
    gc.collect()
    after = descriptors(), threading.active_count()
    if after[0] > before[0] + 4 or after[1] > before[1] + 2:
        failures.append(f"descriptors and threads grew from {before} to {after}")
    return statuses, failures


def descriptors() -> int:
    """Open files of this process."""
    folder = "/proc/self/fd"
    return len(os.listdir(folder)) if os.path.isdir(folder) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url")
    asked = parser.parse_args()
    if asked.url:
        parts = urlsplit(asked.url)
        statuses, failures = attack((parts.hostname or "", parts.port or 80), asked.requests, asked.seed)
    else:
        statuses, failures = attack_own(asked.requests, asked.seed)
    print(f"{statuses.total()} requests: {dict(sorted(statuses.items()))}")
    for each in failures[:20]:
        print(f"FAILED {each}")
    print(f"{len(failures)} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
